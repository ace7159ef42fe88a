"""Which GPUs there are, which of them are visible, which the setting means, and what of one is a worker's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.exits import ConfigurationError, ResourceError
from server.gpus import VISIBLE, Gpu, allot, chosen, find, see, visible
from tests.fake_gpu.machine import ROOT, Device, Machine

GIB = 1 << 30


def gpu(uuid: str, index: int = 0) -> Gpu:
    """A GPU of 10 GiB."""
    return Gpu(uuid, "Fake", 10 * GIB, 0, (9, 0), index)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of two GPUs and one in MIG mode, which every process sees that is started now."""
    made = Machine.make(
        tmp_path / "machine",
        Device("GPU-old", used=5),
        Device("GPU-aa"),
        Device("GPU-m", mig=("MIG-1", "MIG-2")),
    )
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(VISIBLE, raising=False)
    return made


def test_find(machine: Machine) -> None:
    """Every GPU by its index, of one in MIG mode its MIG devices."""
    found = find()

    assert [["GPU-old"], ["GPU-aa"], ["MIG-1", "MIG-2"]] == [[each.uuid for each in devices] for devices in found]
    assert found[0][0] == Gpu("GPU-old", "Fake GPU-old", machine.devices[0].total, 5, (9, 0))


def test_one_is_gone(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """A GPU that has fallen off the bus is not there; the others keep their indices."""
    machine.lose("GPU-aa")
    assert [["GPU-old"], [], ["MIG-1", "MIG-2"]] == [[each.uuid for each in devices] for devices in find()]
    assert ["NVML: GPU 1: GPU-aa"] == caplog.messages
    assert ["GPU-old", "MIG-1", "MIG-2"] == [each.uuid for each in chosen("auto", {})]
    assert ["MIG-1", "MIG-2", "GPU-old"] == [each.uuid for each in chosen("auto", {VISIBLE: "1,2,0"})]


def test_unlike(machine: Machine) -> None:
    """What a trial finds on one must hold on all: GPUs that differ are refused, and may be picked."""
    machine.have(Device("GPU-a"), Device("GPU-b", capability=(7, 5)))
    line = (
        "WARMFORK_DEVICE=auto: GPUs must be alike, there are cuda:0 Fake GPU-a 256 MiB, cuda:1 Fake GPU-b 256 MiB; "
        "pick with CUDA_VISIBLE_DEVICES or cuda:N"
    )
    with pytest.raises(ConfigurationError) as caught:
        chosen("auto", {})
    assert line == str(caught.value)
    assert ["GPU-b"] == [each.uuid for each in chosen("cuda:1", {})]


@pytest.mark.usefixtures("machine")
def test_shown_to_an_operator() -> None:
    """`python -m server.nvml` says what the server sees."""
    asked = subprocess.run([sys.executable, "-m", "server.nvml"], cwd=ROOT, capture_output=True, check=True, text=True)
    assert '"uuid":"MIG-2"' in asked.stdout


def test_no_driver(machine: Machine) -> None:
    """Where there is no driver there are no GPUs, which `auto` takes as it is, and `cuda` does not."""
    machine.folder.rename(machine.folder.with_name("gone"))

    assert find() == []
    assert chosen("auto", os.environ) == ()
    with pytest.raises(ResourceError, match=r"^WARMFORK_DEVICE=cuda: no such GPU; there are 0$"):
        chosen("cuda", os.environ)


def test_broken_driver(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """What NVML says of itself is passed on, in one line; `auto` then uses the processor; who wants that does not ask."""
    machine.folder.rename(machine.folder.with_name("gone"))
    machine.folder.write_text("Driver/library version mismatch", encoding="ascii")

    with pytest.raises(ResourceError, match=r"^WARMFORK_DEVICE=cuda: NVML: .*Driver/library version mismatch$"):
        chosen("cuda", os.environ)
    assert caplog.messages == []
    assert chosen("cpu", os.environ) == chosen("auto", os.environ) == ()
    (said,) = caplog.messages
    assert re.fullmatch("WARMFORK_DEVICE=auto: NVML: .*Driver/library version mismatch; models run on the processor", said)


def test_silent_driver(machine: Machine) -> None:
    """A driver that hangs does not hang the start."""
    (machine.folder / "hangs").touch()
    with pytest.raises(ResourceError, match=r"^WARMFORK_DEVICE=cuda: NVML did not say in 0\.1 s which GPUs there are$"):
        chosen("cuda", os.environ, 0.1)


@pytest.mark.parametrize(
    ("given", "uuids"),
    [
        (None, "GPU-aa GPU-ab MIG-1 MIG-2"),
        ("", ""),
        ("-1", ""),
        ("1,0", "GPU-ab GPU-aa"),
        ("0,-1,1", "GPU-aa"),
        ("2", "MIG-1 MIG-2"),
        ("MIG-2, GPU-ab", "MIG-2 GPU-ab"),
        ("GPU-a", "GPU-aa GPU-ab"),
        ("GPU-ab,GPU-a", "GPU-ab GPU-aa"),
        ("3", ""),
        ("1,1", "GPU-ab"),
        ("NoDevFiles", ""),
    ],
)
def test_visible(given: str | None, uuids: str) -> None:
    """`CUDA_VISIBLE_DEVICES` picks them, and says in which order they are numbered."""
    there = [[gpu("GPU-aa")], [gpu("GPU-ab")], [gpu("MIG-1"), gpu("MIG-2")]]

    found = visible(there, {} if given is None else {VISIBLE: given})

    assert uuids.split() == [each.uuid for each in found]
    assert list(range(len(found))) == [each.index for each in found]
    assert [f"cuda:{index}" for index in range(len(found))] == [each.device for each in found]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "seen", "uuids"),
    [
        ("cpu", None, ""),
        ("auto", None, "GPU-old GPU-aa MIG-1 MIG-2"),
        ("cuda", None, "GPU-old GPU-aa MIG-1 MIG-2"),
        ("cuda:2", None, "MIG-1"),
        ("cuda:1", "1,0", "GPU-old"),
        ("auto", "", ""),
    ],
)
def test_chosen(device: str, seen: str | None, uuids: str) -> None:
    """`WARMFORK_DEVICE` picks among the visible ones."""
    assert uuids.split() == [each.uuid for each in chosen(device, {} if seen is None else {VISIBLE: seen})]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "environ", "line"),
    [
        ("cuda:4", {}, "WARMFORK_DEVICE=cuda:4: no such GPU; there are 4"),
        ("cuda", {VISIBLE: ""}, "WARMFORK_DEVICE=cuda: no such GPU with CUDA_VISIBLE_DEVICES=; there are 0"),
        ("cuda:1", {VISIBLE: "1"}, "WARMFORK_DEVICE=cuda:1: no such GPU with CUDA_VISIBLE_DEVICES=1; there are 1"),
    ],
)
def test_not_there(device: str, environ: dict[str, str], line: str) -> None:
    """One that is asked for and not there is named, with what restricts it."""
    with pytest.raises(ResourceError) as caught:
        chosen(device, environ)
    assert line == str(caught.value)


@pytest.mark.parametrize(("workers", "count", "share"), [(1, 1, 8), (2, 1, 4), (2, 2, 8), (3, 2, 4), (4, 2, 4), (5, 2, 8 / 3)])
def test_share(workers: int, count: int, share: float) -> None:
    """A GPU is shared by as many workers as the fullest one has, the headroom aside."""
    gpus = [gpu(f"GPU-{index}", index) for index in range(count)]
    found = allot(gpus, count - 1, workers, 0.2)
    assert found.gpu is gpus[-1]
    assert int(share * GIB) == pytest.approx(found.bytes, abs=1)


@pytest.fixture
def unseen() -> Iterator[None]:
    """What this process may see is put back."""
    before = os.environ.pop(VISIBLE, None)
    yield
    os.environ.pop(VISIBLE, None)
    if before is not None:
        os.environ[VISIBLE] = before


@pytest.mark.usefixtures("unseen")
def test_see() -> None:
    """A process that is to run on a GPU sees that one alone, in its own environment and that of native code."""
    see(gpu("GPU-x"))
    command = [sys.executable, "-c", f"import os; print(os.environ['{VISIBLE}'])"]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "GPU-x\n"
