"""Reloads again and again: nothing piles up, nothing that a repository or a client holds ends or blocks them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTTOU

import psutil
import pytest
from onnx import helper

from server.scoreboard import MODEL_PLACES
from tests.models import failing, graph, identity, put
from tests.phases import Gated, server_in
from tests.repeat import Repeat
from tests.server import Server

PLAIN = {"x": ("FP32", [[1.0, 2.0, 3.0]])}
MIB = 1 << 20
TABLE = 50 * MIB
CAUGHT = """
try:
    import accelerator_that_is_not_installed
except ImportError as error:
    WHY = error
"""
LAZY = """
def preprocess(inputs):
    time.sleep(1.1 if SLOW.exists() else 0)
    return inputs
"""
SAYS = """
SAID = float((Path(__file__).parent / "data" / "said").read_text())
def postprocess(outputs, inputs):
    return {"y": outputs["y"] * 0 + SAID}
"""


def _settled(server: Server) -> bool:
    """Whether nobody is left but master, management and the workers of one generation."""
    page = server.status()
    return not page["building"] and {worker["generation"] for worker in page["workers"]} == {page["generation"]}


def _held(server: Server) -> int:
    """The proportional memory of all processes, in bytes."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in server.processes())


def test_nothing_piles_up(tmp_path: Path) -> None:
    """Twenty new versions, each with a table of 50 MiB: all processes hold no more than after the first, nor more descriptors.

    Each keeps an exception, which leads to whoever imported it. What a module of the operator's holds in a circle of its own
    stays with workers that were forked beside it: one table.
    """
    python = f"TABLE = b'x' * {TABLE}\n{CAUGHT}\ndef preprocess(inputs):\n    return inputs\n"
    put(tmp_path, "m", identity(), "", python)
    with Server(tmp_path) as server:
        master = psutil.Process(server.process.pid)
        for version in range(2, 23):
            put(tmp_path, "m", identity(), "", python, version)
            server.reload()
            server.wait(lambda: _settled(server), "the old to leave")
            if version == 2:
                before, descriptors = _held(server), master.num_fds()

        server.wait(lambda: _held(server) < before + TABLE // 2, "the old tables to go", 5)
        server.wait(lambda: master.num_fds() <= descriptors, "the old descriptors to go", 5)
        assert server.infer("m", PLAIN)[1]["model_version"] == "22"


def test_keeps_what_has_not_changed(tmp_path: Path) -> None:
    """A reload tries and loads what is new on disk, also behind a link, and nothing else."""
    gated = Gated(tmp_path)
    folder = put(tmp_path, "m", identity(), "", "from pathlib import Path\n" + SAYS)
    (tmp_path / ".elsewhere").mkdir()
    (folder / "1" / "data").symlink_to(tmp_path / ".elsewhere")
    (tmp_path / ".elsewhere" / "said").write_text("1", encoding="ascii")
    with Server(tmp_path, workers=2) as server:
        for gate in ("trial", "load"):
            gated.close(gate, "")
        for said in ("1", "2"):
            (tmp_path / ".elsewhere" / "said").write_text(said, encoding="ascii")
            server.reload()
            assert server.infer("m", PLAIN)[1]["outputs"][0]["data"] == [float(said)] * 3
            assert server.infer("gated", PLAIN)[0] == 200
            assert gated.came("trial") == gated.came("load") == []
        server.wait_log("Generation 2: unchanged, and kept: gated/1\n")
        server.wait_log("Generation 3: unchanged, and kept: gated/1\n")
        server.reload()
        server.wait_log("Generation 4: unchanged, and kept: gated/1, m/1\n")
        assert server.infer("m", PLAIN)[1]["outputs"][0]["data"] == [2.0] * 3

        gated.renew()
        server.reload()
        assert gated.came("trial")
        assert gated.came("load") == [server.process.pid]


def test_kept_model_that_got_slow(tmp_path: Path) -> None:
    """A model that has not changed on disk, but no longer holds its `p95_ms`, refuses the reload."""
    slow = tmp_path / ".slow"
    python = f"import time\nfrom pathlib import Path\nSLOW = Path({str(slow)!r})\n" + LAZY
    put(tmp_path, "m", identity(), "p95_ms = 1000\nbatch_sizes = [1]\n", python)
    with Server(tmp_path, workers=2) as server:
        server.reload()
        slow.touch()
        server.reload(refused=r".*p95 of \d+ requests of our own is .* ms, its p95_ms is 1000")
        slow.unlink()
        server.reload()
        server.wait_log("unchanged, and kept: m/1", count=3)


def test_kept_model_that_fails(tmp_path: Path) -> None:
    """A worker of the new generation in which a kept model fails refuses the reload, and the old generation serves on."""
    with server_in("serving", tmp_path) as scene:
        scene.gated.close("warming", "raise RuntimeError('no luck')")
        scene.server.reload(refused=".*gated/1.*no luck")
        scene.gated.open("warming")
        scene.server.reload()
        assert scene.ask() == 200


def test_many_versions(tmp_path: Path) -> None:
    """The page has places for 64 models; the 35th version of two in a row is served and counted from one all the same."""
    assert 2 * 35 > MODEL_PLACES
    for name in ("m", "n"):
        put(tmp_path, name, identity(), "")
    with Server(tmp_path) as server:
        for version in range(2, 36):
            assert server.infer("m", PLAIN)[1]["model_version"] == str(version - 1)
            for name in ("m", "n"):
                put(tmp_path, name, identity(), "", version=version)
            server.reload()
            server.wait(lambda: _settled(server), "the old to leave")
        assert server.infer("m", PLAIN)[1]["model_version"] == "35"
        stats = json.loads(server.request("GET", "/v2/models/m/versions/35/stats")[2])["model_stats"]
        assert [(model["version"], model["inference_count"]) for model in stats] == [("35", 1)]


def _not_text(root: Path) -> None:
    (root / os.fsdecode(b"\xff")).mkdir()


def _long_error(root: Path) -> None:
    (root / "m" / "1" / "model.py").write_text("raise ValueError('no luck ' * 250_000)\n", encoding="utf-8")


def _odd_error(root: Path) -> None:
    (root / "m" / "1" / "model.py").write_text(r"raise ValueError('\udcff and a' '\n' 'line')", encoding="utf-8")


def _unreadable(root: Path) -> None:
    (root / "m" / "1" / "model.onnx").unlink()
    (root / "m" / "1" / "model.onnx").symlink_to("/proc/self/mem")


def _vanishes(root: Path) -> None:
    (root / "m" / "1" / "extra").touch()
    code = failing("trial", "os.unlink(__file__.replace('model.py', 'extra'))")
    (root / "m" / "1" / "model.py").write_text(code, encoding="utf-8")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no text": (_not_text, r".*\\(udcff|xff).*: a model's name must match"),
    "long error": (_long_error, r".*ValueError: (no luck ){10}"),
    "odd error": (_odd_error, r".*ValueError: \\(udcff|xff) and a line"),
    "unreadable": (_unreadable, r".*model\.onnx: Input/output error"),
    "vanishes": (_vanishes, r".*extra: changed while it was being loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_repository(case: str, tmp_path: Path) -> None:
    """What is wrong on disk refuses the reload in one line of the log, and no more: the same workers serve on."""
    spoil, line = BAD[case]
    folder = put(tmp_path, "m", identity(), "", failing("", "pass"))
    good = (folder / "1" / "model.py").read_bytes(), (folder / "1" / "model.onnx").read_bytes()
    with Server(tmp_path, workers=2) as server:
        spoil(tmp_path)
        server.reload(refused=line)
        assert server.process.poll() is None
        assert server.infer("m", PLAIN)[0] == 200
        assert max(len(said) for said in server.lines) < 1500

        for path in tmp_path.glob("\udcff"):
            path.rmdir()
        (folder / "1" / "model.onnx").unlink()
        (folder / "1" / "model.py").write_bytes(good[0])
        (folder / "1" / "model.onnx").write_bytes(good[1])
        server.reload()


def test_files_changed_without_a_reload(tmp_path: Path) -> None:
    """Where each worker reads the file itself, a replacement does not serve one that nobody has tried; a HUP has it tried."""
    file = put(tmp_path, "m", identity(), "batch_sizes = [1]\n") / "1" / "model.onnx"
    with Server(tmp_path, workers=2, threads=2) as server:
        server.expect("was sent SIGKILL", "killed by SIGKILL", "exited with code", "changed since it was tried")
        kept, new = tmp_path / ".kept", file.read_bytes()
        file.rename(kept)
        file.write_bytes(new)
        os.kill(server.wait_state("active", 2)[0]["pid"], SIGKILL)
        server.wait_log(r"model\.onnx: changed since it was tried; send HUP to have it tried, or put the old one back")
        assert server.infer("m", PLAIN)[0] == 200
        assert "changed since it was tried" in " ".join(server.status()["reasons"])

        kept.rename(file)
        server.wait_state("active", 2)
        file.unlink()
        file.write_bytes(new)
        server.reload()
        server.wait_state("active", 2)
        assert server.status()["reasons"] == []


def test_link_to_nowhere(tmp_path: Path) -> None:
    """A link that no system call can follow, beside a model's file, ends nobody, whether the reload is refused for it or not."""
    folder = put(tmp_path, "m", identity(), "")
    with Server(tmp_path) as server:
        server.expect("generation 2 was refused: .*too long")
        (folder / "1" / "link").symlink_to("x" * 300)
        server.send(SIGHUP)
        server.wait(lambda: re.search("generation 2 was refused|Generation 2 is open", server.log), "the reload")
        assert server.infer("m", PLAIN)[0] == 200
        (folder / "1" / "link").unlink()
        server.wait(lambda: _settled(server), "its end")
        server.reload()


def test_what_clients_send_blocks_no_reload(tmp_path: Path) -> None:
    """Shapes that nobody declared are met, and fail, give NaN or take long: the next reload is not the worse for it."""
    free = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": ("FP32", ["n"])}, {"y": ("FP32", ["n"])})
    python = """
import time
def preprocess(inputs):
    time.sleep(1.5 if len(inputs["x"]) == 9 else 0)
    return inputs

def postprocess(outputs, inputs):
    if len(outputs["y"]) == 7:
        raise RuntimeError("seven")
    return {"y": outputs["y"] * float("nan")} if len(outputs["y"]) == 5 else outputs
"""
    put(tmp_path, "m", free, "", python)
    with Server(tmp_path, boot_timeout=10) as server:
        server.expect("model m/1 failed on a request", "Traceback")
        answers = {length: server.infer("m", {"x": ("FP32", [1.0] * length)})[0] for length in (3, 5, 7, 9)}
        assert (answers[3], answers[9]) == (200, 200)
        assert answers[5] >= 400
        assert answers[7] == 500
        server.reload()
        server.wait(lambda: _settled(server), "the old to leave")
        (worker,) = server.wait_state("active")
        assert "n=3" in worker["models"]["m/1"]
        assert not {"n=5", "n=7", "n=9"} & set(worker["models"]["m/1"])


def test_reloads_while_an_old_worker_is_busy(tmp_path: Path) -> None:
    """Two reloads, while the one worker of the first generation finishes a long request: all three come to their ends."""
    with server_in("request", tmp_path, workers=1, max_workers=1, request_timeout=100) as scene:
        server = scene.server
        for number in (2, 3):
            server.send(SIGHUP)
            if number == 2:
                server.wait_log("Generation 2 is open")
        server.wait(lambda: "waits for older workers to leave" in str(server.probe("/status")[1]), "generation 3 to wait")
        assert scene.ask() == 200
        assert not scene.held[0].done()
        scene.gated.open("request")
        assert scene.held[0].result()[0] == 200
        server.wait_log("Generation 3 is open")
        server.wait(lambda: _settled(server) and len(server.processes()) == 3, "the old to leave")
        assert server.status()["reasons"] == []
        server.reload()


def test_refused_reload_delays_nobody(tmp_path: Path) -> None:
    """After a generation that failed in its workers the next one boots at once: who was taken down with it has not failed."""
    folder = put(tmp_path, "m", identity(), "", failing("", "pass"))
    with Server(tmp_path, workers=4, max_workers=4) as server:
        (folder / "1" / "model.py").write_text(failing("worker", "raise RuntimeError('no luck')"), encoding="utf-8")
        server.reload(refused=".*no luck")
        (folder / "1" / "model.py").write_text(failing("", "pass"), encoding="utf-8")
        with Repeat(lambda: [worker["doing"] for worker in server.status()["workers"]], pause=0.01) as seen:
            server.reload()
        assert not [doing for _, doing, _ in seen.results if "since boots failed" in str(doing)]
        server.wait_state("active", 4)


def test_fewer_workers_than_the_quorum(tmp_path: Path) -> None:
    """A quorum of two asks no more of the one worker that TTOU has left: it reloads."""
    put(tmp_path, "m", identity())
    with Server(tmp_path, workers=2, ready_quorum=2, boot_timeout=10) as server:
        server.send(SIGTTOU)
        server.wait(lambda: len(server.status()["workers"]) == 1, "one fewer")
        server.reload()
        server.wait(lambda: _settled(server), "the old to leave")
        assert [worker["state"] for worker in server.status()["workers"]] == ["active"]
