"""`torch.compile`: each shape once, in the trial of the first start; workers, later starts and cold requests compile nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import pytest

from tests.server import Server
from tests.torch_models import TENSORS, answer, put_torch

ROW = [1.0, -2.0, 3.0]
COMPILED = f"{TENSORS}\n[torch]\ncompile = true\n"
"""No batch sizes are declared, so one row is what is compiled, and more are cold."""

SLOW = 240.0
"""Seconds that a busy machine may take to compile."""
pytestmark = pytest.mark.timeout(2 * SLOW)


def files(cache: Path) -> dict[str, int]:
    """All that lies in a cache, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def ask(server: Server, rows: int) -> None:
    """Ask for an answer of so many rows; it must be right."""
    status, given = server.infer("m", {"x": ("FP32", [ROW] * rows)})
    assert status == 200, given
    assert given["outputs"][0]["data"] == pytest.approx(answer([ROW] * rows).ravel().tolist(), rel=1e-5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for compiled code, not made yet, of servers that would let everybody write to what they make."""
    before = os.umask(0)
    folder = tmp_path_factory.mktemp("compiled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder
    os.umask(before)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository of one model that is compiled."""
    put_torch(tmp_path / "models", "m", "model.pth", COMPILED)
    return tmp_path / "models"


def test_compiled_once(models: Path, cache: Path) -> None:
    """The first start compiles before it forks; no worker, no second start and no cold shape writes a file into the cache.

    The folder is made for this user alone, whatever the umask.
    """
    with Server(models, workers=2, ready=False) as server:
        server.wait_log("Booting worker", SLOW)
        compiled = files(cache)
        assert [path for path in compiled if path.endswith(".so")]
        assert cache.stat().st_mode & 0o777 == 0o700
        server.wait_ready(SLOW)
        (model,) = server.status()["models"]
        assert (model["rung"], model["shapes"]) == ("live", [{"x.0": 1}])
        assert model["compile_seconds"] > 0
        ask(server, 1)
        assert files(cache) == compiled

    with Server(models, workers=2, ready=False) as server:
        server.wait_ready(SLOW)
        assert server.status()["models"][0]["compile_seconds"] > 0
        ask(server, 1)
        assert [0, 0] == [worker["cold_dispatches"] for worker in server.wait_state("active", 2)]
        for rows in (2, 5):
            ask(server, rows)
        assert sum(worker["cold_dispatches"] for worker in server.wait_state("active", 2)) == 2
        assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) == 1
        assert files(cache) == compiled


def test_each_worker_finds_what_is_compiled(models: Path, cache: Path) -> None:
    """Of code for two threads the master can run nothing: each worker finds it on disk, and compiles nothing."""
    with Server(models, workers=2, threads=2, ready=False) as server:
        server.wait_log("Booting worker", SLOW)
        compiled = files(cache)
        assert [path for path in compiled if path.endswith(".so")]
        server.wait_ready(SLOW)
        assert server.status()["models"][0]["rung"] == "live"
        for rows in (1, 5):
            ask(server, rows)
        assert files(cache) == compiled


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_cache_that_others_can_write_to(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Compiled code is run, so a folder that others could write it into ends the start with 78, by its name."""
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))

    Server(models).ends(78, rf"{folder}: compiled code is run from here \(TORCHINDUCTOR_CACHE_DIR\).*")

    assert files(folder) == {}


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
def test_ended_while_it_compiles(models: Path, tmp_path: Path, number: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the master ends while a compiler runs, the compiler ends with it, though it is a child of a child's child."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with Server(models, ready=False) as server:
        server.wait(lambda: any("cc1plus" in command for command in server.processes().values()), "the compiler", SLOW)
        server.send(number)
        server.clean(-SIGKILL if number is SIGKILL else 0)


def test_no_compiler(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler a start ends with 78 and a line that says what is missing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with Server(models, ready=False) as server:
        server.expect("compile needs a C\\+\\+ compiler")
        server.clean(78)
