"""On which GPU a worker goes, and whether there is memory for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

from server.exits import ResourceError
from server.gpus import Gpu
from server.master.placement import GpuRoom, placed
from server.settings import Settings
from tests.fake_gpu.machine import Device, Machine

MIB = 1 << 20


def test_spread() -> None:
    """Workers go on all GPUs in turn."""
    assert [0, 1, 2, 0, 1, 2, 0] == list(islice(placed([], [], 3, 0), 7))


@pytest.mark.parametrize("gone", range(5))
def test_replacement(gone: int) -> None:
    """Whoever replaces one worker gets its GPU, also where others have as few."""
    taken = [0, 1, 2, 0, 1]
    left = [*taken[:gone], *taken[gone + 1 :]]
    assert taken[gone] == next(placed(left, left, 3, taken[gone]))


def test_several_are_replaced() -> None:
    """However many are gone at once, as many are on each in the end."""
    left = [0, 0, 1]
    assert [2, 2, 2] == [[*left, *islice(placed(left, left, 3, 2), 3)].count(gpu) for gpu in range(3)]


def test_beside_another_generation() -> None:
    """A generation that comes is spread over all as well, wherever the other one is; one by one, it goes where one has left."""
    assert [1, 0, 1] == list(islice(placed([0, 1, 0], [], 2, 0), 3))
    assert [0, 1] == list(islice(placed([1, 1], [], 2, 0), 2))
    assert next(placed([0, 1, 0, 0], [0], 2, 1)) == 1


def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int, *used: int, booting: Sequence[int] = ()) -> GpuRoom:
    """The room for workers of `each` MiB on GPUs of 100 MiB of which `used` is, with half for headroom."""
    machine = Machine.make(
        tmp_path / "machine", *(Device(f"GPU-{index}", 100 * MIB, held * MIB) for index, held in enumerate(used))
    )
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    gpus = tuple(Gpu(f"GPU-{index}", "Fake", 100 * MIB, 0, (9, 0), index) for index in range(len(used)))
    read = Settings(**{**vars(Settings.read({"WARMFORK_MEMORY_HEADROOM": "0.5"})), "gpus": gpus})
    return GpuRoom(read, each * MIB, placed([], [], len(used), 0), lambda: booting)


@pytest.mark.parametrize(
    ("each", "used", "fitting"),
    [
        (10, [0], 5),
        (10, [1], 4),
        (10, [60], 0),
        (10, [0, 0], 10),
        (10, [1, 0], 8),
        (10, [0, 1], 9),
        (10, [45, 0], 0),
        (10, [0, 45], 1),
        (10, [100, 100], 0),
        (51, [0, 0], 0),
    ],
)
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int, used: list[int], fitting: int) -> None:
    """As many as fit beside what anybody holds, one on each GPU in turn, until the first is full."""
    assert fitting == room(tmp_path, monkeypatch, each, *used).fitting


def test_booting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who boots holds nothing yet, and is to have his room."""
    assert 6 == room(tmp_path / "0", monkeypatch, 10, 0, 0, booting=[0, 0]).fitting
    assert 0 == room(tmp_path / "1", monkeypatch, 10, 0, 0, booting=[0] * 7).fitting


def test_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that has gone there is no room."""
    monkeypatch.setattr("server.master.placement.find", lambda _seconds: [])
    found = room(tmp_path, monkeypatch, 10, 0)
    assert (0, "cuda:0 (Fake, GPU-0) has gone, as NVML says") == (found.fitting, found.sums)


def test_others_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there has its room, whatever became of those that the environment names before it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-gone,GPU-0")
    assert 5 == room(tmp_path, monkeypatch, 10, 0).fitting


def test_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused hears which GPU is full, what is left there, after how many, and the bound."""
    found = room(tmp_path, monkeypatch, 10, 0, 45)

    line = (
        "a worker takes 10 MiB of its GPU, 5 MiB are left of 100 MiB on cuda:1 (Fake) after 1 of them, "
        "with WARMFORK_MEMORY_HEADROOM=0.5"
    )
    assert line == found.sums
    found.expect(1)
    with pytest.raises(ResourceError, match=r"^no memory for one more worker: a worker takes 10 MiB of its GPU, 5 MiB are left"):
        found.expect(2)
