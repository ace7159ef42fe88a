"""`torch.compile`: where compiled code may lie, that it is found again, and that nothing is compiled once all is warm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.engines import torch_compile
from server.engines.engine import COMPILED as VARIABLE
from server.engines.engine import Source
from server.engines.torch_compile import folder
from server.engines.torch_session import TorchSession
from server.exits import ConfigurationError
from server.models import operator
from server.models.repository import ModelFiles
from server.models.schema import ModelToml
from server.tensors import ANY, TensorSpec

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

ROOT = Path(__file__).parents[2]
X = TensorSpec("input", "FP32", (ANY, 3), ("n", None))
Y = TensorSpec("y", "FP32", (ANY, 2), ("n", None))


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The umask that most users have, whoever runs the tests."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """The permissions of a folder."""
    return path.stat().st_mode & 0o777


def test_folder_is_made(tmp_path: Path) -> None:
    """A folder that is missing is made for this user alone, with those above it, and found the next time."""
    path = tmp_path / "a/b/c"

    assert path == folder(str(path))
    assert 0o700 == mode(path)
    assert path == folder(str(path))


def test_folder_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder is named it is one of ours in the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tmp_path / "home/.cache/warmfork/torch" == folder(None) == folder("")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tmp_path / "cache/warmfork/torch" == folder(None)
    assert 0o700 == mode(tmp_path / "cache/warmfork/torch")


@pytest.mark.parametrize("permissions", [0o700, 0o750, 0o755, 0o711])
def test_folder_that_is_there(tmp_path: Path, permissions: int) -> None:
    """A folder that others may read is taken, and left as it is."""
    tmp_path.chmod(permissions)

    assert tmp_path == folder(str(tmp_path))
    assert permissions == mode(tmp_path)


@pytest.mark.parametrize("permissions", [0o770, 0o777, 0o1777, 0o720, 0o702])
def test_folder_that_others_may_write_to(tmp_path: Path, permissions: int) -> None:
    """A folder in which another user could put code is refused by its name and the rule, also through a link."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(permissions)
    (tmp_path / "link").symlink_to(path)

    for given in (path, tmp_path / "link"):
        with pytest.raises(
            ConfigurationError, match=f"^{given}: compiled code is run from here .{VARIABLE}., so none but this user"
        ):
            folder(str(given))


def test_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that belongs to somebody else is refused, though nobody but its owner may write to it."""
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(ConfigurationError, match=f"^{tmp_path}: compiled code is run from here"):
        folder(str(tmp_path))


def test_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without room for anything, or that cannot be made, is refused with the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigurationError, match=f"^{tmp_path}/file: compiled code cannot be kept here .{VARIABLE}.: File exists$"
    ):
        folder(str(tmp_path / "file"))
    with pytest.raises(
        ConfigurationError, match=f"^{tmp_path}/file/a: compiled code cannot be kept here .{VARIABLE}.: Not a dir"
    ):
        folder(str(tmp_path / "file/a"))

    monkeypatch.setattr(os, "access", lambda *_: False)  # as it is for whoever is not root
    with pytest.raises(
        ConfigurationError, match=f"^{tmp_path}: compiled code cannot be kept here .{VARIABLE}.: it cannot be writ"
    ):
        folder(str(tmp_path))


def test_an_unfit_folder_ends_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is to be compiled is not made where its code could not be kept."""
    tmp_path.chmod(0o777)
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    with pytest.raises(ConfigurationError, match=f"^{tmp_path}: compiled code is run from here"):
        TorchSession(torch.nn.Linear(3, 2), Source(Path("m.pt2"), compiled=True), (X,), (Y,))


# That nothing is compiled once all is warm: with a compiler that only counts.


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each graph that was compiled has; sessions compile with what counts them."""
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(
            next(len(example) for example in examples if example.dim() == 2 and example.shape[1] == 3 and len(example) != 2)
        )
        return graph.forward

    monkeypatch.setattr(torch_compile, "compiled", lambda module: torch.compile(module, dynamic=False, backend=count))
    yield compiled
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def network() -> torch.nn.Module:
    """`y` is the sum of the columns of `input`, and the same plus one."""
    made = torch.nn.Linear(3, 2)
    with torch.no_grad():
        made.weight.fill_(1)
        made.bias.copy_(torch.tensor([0.0, 1.0]))
    return made


def session() -> TorchSession:
    """A session of that which compiles."""
    return TorchSession(network().requires_grad_(requires_grad=False), Source(Path("m.pt2"), compiled=True), (X,), (Y,))


def answers(made: TorchSession, rows: int) -> list[list[float]]:
    """What a session answers to so many rows of ones."""
    answer: list[list[float]] = made.run({"input": np.ones((rows, 3), np.float32)})["y"].tolist()
    return answer


def test_each_shape_once(counted: list[int]) -> None:
    """Each shape is compiled when it is met first, for its own lengths, and never again."""
    made = session()
    for rows in (1, 4, 1, 8, 4, 1):
        assert [[3, 4]] * rows == answers(made, rows)

    assert [1, 4, 8] == counted


@pytest.mark.parametrize("where", ["here", "thread"])
def test_settled(counted: list[int], where: str) -> None:
    """Once all is warm a shape that is new runs as it is written, in any thread, while those that are warm stay compiled."""
    made = session()
    for rows in (1, 4):
        answers(made, rows)
    made.settle()
    came: list[bool] = []

    def run() -> None:
        came.extend([[3, 4]] * rows == answers(made, rows) for rows in (1, 7, 4, 9, 7))

    if where == "here":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    assert [True] * 5 == came
    assert [1, 4] == counted


def test_never_run_before_it_settles(counted: list[int]) -> None:
    """A model of which nothing was compiled when all had to be warm is never compiled."""
    made = session()
    made.settle()

    assert [[3, 4]] * 5 == answers(made, 5)
    assert [] == counted


# The real compiler, in processes of its own.

RUN = """
import json, os, sys
sys.path.insert(0, "{root}")
from server import environment
import torch
import numpy as np
from tests.unit.test_torch_compile import answers, session

made = session()
from torch._dynamo.utils import counters  # makes the folder as it likes
made.enter(1)
came = [answers(made, rows) for rows in (1, 4)]
found = dict(counters["inductor"])
made.settle()
came.append(answers(made, 6))
print(json.dumps(dict(
    came=came,
    hits=found.get("fxgraph_cache_hit", 0),
    misses=found.get("fxgraph_cache_miss", 0),
    later=dict(counters["inductor"]) != found,
    threads=len(os.listdir("/proc/self/task")),
    children=open(f"/proc/self/task/{{os.getpid()}}/children").read(),
)))
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_once(tmp_path: Path) -> None:
    """What one process has compiled another finds on disk, and then starts neither threads nor processes to get it."""
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", RUN.format(root=ROOT)]
        environment = {**os.environ, VARIABLE: str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = found

    assert 0o700 == mode(tmp_path / "cache")
    for each in found:
        assert [[[3, 4]] * rows for rows in (1, 4, 6)] == each["came"]
        assert not each["later"]
        assert "" == each["children"]
    assert (0, 2) == (first["hits"], first["misses"])
    assert (2, 0) == (second["hits"], second["misses"])
    assert 1 == second["threads"]


def test_a_network_of_torchs_own_class(tmp_path: Path) -> None:
    """What compiles looks functions up by their module: one of the operator's is found there for as long as it is held."""
    python = (
        "import torch\nfrom torch.nn import functional as F\n"
        "class Block(torch.nn.Module):\n    def forward(self, x):\n        return F.relu(x) + 1\n"
        "def module():\n    return torch.nn.Sequential(Block(), Block())\n"
    )
    (tmp_path / "model.py").write_text(python, encoding="utf-8")
    held = operator.load(ModelFiles("m", 1, tmp_path, ModelToml(python="model.py")))
    assert held.module

    compiled = torch.compile(held.module(), backend="eager", fullgraph=True)

    assert [2.0, 4.0] == compiled(torch.tensor([-1.0, 2.0])).tolist()  # type: ignore[no-untyped-call]
