"""Torch in a process that forks: what would make every child hang is found and named, all else is shared and runs at will."""

from __future__ import annotations

import os
import re
import shutil
import signal
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.models import identity, put
from tests.repeat import Repeat
from tests.server import ROOT, Server
from tests.torch_models import NETWORK, answer, put_text, put_torch, sentence, vector

ROWS = [[1.0, 2.0, 3.0], [-0.5, 0.25, 4.0]]

TEAM = """
import torch

def centre():
    torch.set_num_threads(2)
    return torch.ones(2048, 2048).sum()  # a parallel region of two threads
"""
"""What no process may do that forks afterwards."""

AT_IMPORT = f"{TEAM}\nCENTRE = centre()\n{NETWORK}"
IN_MODULE = f"{TEAM}\n{NETWORK.replace('return Net()', 'centre(); return Net()')}"
CULPRIT = 1 + next(number for number, line in enumerate(TEAM.splitlines()) if "ones" in line)
"""The line that begins it, of both."""

WANTS_A_TEAM = NETWORK.replace("return self.layer(x)", "return self.layer(x) + 0 * torch.ones(2048, 2048).sum()")
"""The same, with a parallel region of as many threads as there are."""

COUNTS = """
import os, threading, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        torch.ones(2048, 2048).sum()
        team = len(os.listdir("/proc/self/task")) > threading.active_count()
        return torch.tensor([[float(torch.get_num_threads()), float(team)]]).expand(len(x), 2)

def module():
    return Net()
"""
"""`y` is the number of threads that torch is to run on, and whether the process has threads that are not Python's."""


def tasks(server: Server) -> int:
    """How many tasks the kernel counts in the master."""
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def rungs(server: Server) -> dict[str, str]:
    """The rung of each model that is served."""
    page = server.status()
    return {model["name"]: model["rung"] for model in page["models"] if model["generation"] == page["generation"]}


def test_a_parallel_region_at_import_is_refused_by_name(tmp_path: Path) -> None:
    """Two torch threads in the import of a model's Python: no start, 70, and the very line of the file that began them."""
    put_torch(tmp_path, "m", "model.pth", python=AT_IMPORT)

    Server(tmp_path).ends(70, rf"model m/1: importing \S*/model\.py left \d threads? .* at \S*/m/1/model\.py:{CULPRIT}: .*")


def test_what_the_trial_is_for(tmp_path: Path) -> None:
    """The same with nothing tried or looked at before a fork: the worker hangs in its first parallel region, to its deadline."""
    put_torch(tmp_path, "m", "model.pth", python=AT_IMPORT + WANTS_A_TEAM)
    server = Server(tmp_path, "-c", str(ROOT / "tests" / "untried_conf.py"), threads=2, boot_timeout=4)

    server.ends(70, r".*worker 0.*")

    stack = server.wait_log(r"(?s)Timeout \(.*?most recent call first\):\n(.*?)\n\n?\[")[1]
    assert re.search(r'File "[^"]*/m/1/model\.py", line \d+ in forward', stack)
    assert '/server/warmup/warm.py"' in stack


def test_the_same_model_without_the_parallel_region_serves_untried(tmp_path: Path) -> None:
    """It is the parallel region that hangs above, not the missing trial: a model without one there serves, on two threads."""
    put_torch(tmp_path, "m", "model.pth", python=WANTS_A_TEAM)

    with Server(tmp_path, "-c", str(ROOT / "tests" / "untried_conf.py"), threads=2) as server:
        assert server.infer("m", {"x": ("FP32", ROWS)})[0] == 200


def test_a_parallel_region_in_module_is_not_shared_live(tmp_path: Path) -> None:
    """Where `module()` runs one, the master does not: each worker makes the network, weights mapped, and /status says why.

    A reload that runs one at its import is refused, and leaves nothing in the master.
    """
    put_torch(tmp_path, "m", "model.safetensors", python=IN_MODULE)

    with Server(tmp_path, workers=2) as server:
        (model,) = server.status()["models"]
        assert model["rung"] == "mapped"
        assert re.search(rf"live: model m/1: loading left \d threads? .*/m/1/model\.py:{CULPRIT}: ", model["why"])
        assert tasks(server) == 1
        (tmp_path / "m" / "1" / "model.py").write_text(AT_IMPORT, encoding="utf-8")
        server.reload(refused=rf"model m/1: importing .* at \S*/m/1/model\.py:{CULPRIT}: ")
        given = server.infer("m", {"x": ("FP32", ROWS)})[1]["outputs"][0]["data"]
        assert given == pytest.approx(answer(ROWS).ravel().tolist(), rel=1e-5)
        assert tasks(server) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_workers(tmp_path: Path, threads: int) -> None:
    """WARMFORK_THREADS is what torch runs on in a worker, of a model that the master holds live, itself on its one task."""
    put_torch(tmp_path, "m", "model.pth", python=COUNTS)

    with Server(tmp_path, threads=threads) as server:
        assert rungs(server) == {"m": "live"}
        asked, team = server.infer("m", {"x": ("FP32", ROWS[:1])})[1]["outputs"][0]["data"]
        assert asked == threads
        assert team == (threads > 1)
        assert tasks(server) == 1


LINEAR = ("script", "export", "module", "state")
TEXTS = [sentence(count, count) for count in (1, 3, 20)]


def mixed(root: Path, version: int = 1) -> None:
    """One model of each kind that there is."""
    put(root, "onnx", identity(), version=version)
    for name, file in zip(LINEAR, ("model.pt", "model.pt2", "model.safetensors", "model.pth"), strict=True):
        put_torch(root, name, file, version=version)
    put_text(root, "text", version=version)


def ask_all(server: Server) -> None:
    """Ask each model of `mixed`; every answer must be right."""
    x = {"x": ("FP32", ROWS)}
    wanted: dict[str, tuple[dict[str, tuple[str, list[Any]]], list[float]]] = {
        "onnx": (x, [number for row in ROWS for number in row]),
        **{name: (x, answer(ROWS).ravel().tolist()) for name in LINEAR},
        "text": ({"text": ("BYTES", TEXTS)}, [number for text in TEXTS for number in vector(text)]),
    }
    for name, (inputs, expected) in wanted.items():
        status, given = server.infer(name, inputs)
        assert status == 200, given
        assert given["outputs"][0]["data"] == pytest.approx(expected, rel=1e-5)


def test_all_kinds_together(tmp_path: Path) -> None:
    """ONNX, TorchScript, torch.export, modules and text in one server, all live: right answers through a kill and a reload.

    The master has one task whenever it could fork.
    """
    mixed(tmp_path)

    with Server(tmp_path, workers=2) as server:
        server.expect("killed by SIGKILL", r"Worker \(pid:\d+\) was sent SIGKILL")
        assert set(rungs(server).values()) == {"live"}
        assert len(rungs(server)) == 6
        with Repeat(lambda: ask_all(server), threads=4, pause=0.05) as asking:
            server.wait(lambda: len(asking.results) >= 12, "a few rounds")
            before = {worker["pid"] for worker in server.wait_state("active", 2)}
            os.kill(victim := min(before), signal.SIGKILL)
            server.wait(lambda: len({worker["pid"] for worker in server.wait_state("active", 2)} - before) == 1, "a new worker")
            assert victim not in {worker["pid"] for worker in server.wait_state("active", 2)}
            assert tasks(server) == 1
            healed = len(asking.results) + len(asking.threads)
            server.wait(lambda: len(asking.results) >= healed + 12, "a few rounds more")
            for name in rungs(server):
                shutil.move(tmp_path / name / "1", tmp_path / name / "2")
            server.reload()
            swapped = len(asking.results) + len(asking.threads)
            server.wait(lambda: len(asking.results) >= swapped + 12, "a few rounds more")
        assert tasks(server) == 1
        assert set(rungs(server).values()) == {"live"}
        failed = [result for _, result, _ in asking.results if isinstance(result, BaseException)]
        lost = [result for result in failed if isinstance(result, OSError | HTTPException)]
        assert failed == lost
        assert len(lost) <= len(asking.threads)
        assert not [result for _, result, _ in asking.results[healed:] if result is not None]
        assert server.infer("script", {"x": ("FP32", ROWS)})[1]["model_version"] == "2"
