"""What makes a process unfit to fork, each tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server import fork_safety
from server.exits import UnshareableError

START = """
import faulthandler, os, threading
from server import environment
from server.fork_safety import fork_safe, unsafe
stop = threading.Event()
"""


def run(program: str) -> str:
    """What `program` prints in a process that has done nothing else."""
    command = [sys.executable, "-c", START + program]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True, text=True).stdout.strip()


def test_clean() -> None:
    """With our environment set first, neither numpy nor onnxruntime makes a process unfit to fork."""
    program = """
import numpy as np, onnxruntime
a = np.ones((300, 300), np.float32)
a @ a
print(repr(unsafe()))
"""
    assert "''" == run(program)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "t = threading.Thread(target=stop.wait, name='poller'); t.start(); print(unsafe()); stop.set()",
            "1 thread besides the main one (Python thread 'poller')",
        ),
        (
            "for n in 'ab': threading.Thread(target=stop.wait, name=n).start()\nprint(unsafe()); stop.set()",
            "2 threads besides the main one (Python thread 'a', Python thread 'b')",
        ),
        ("faulthandler.dump_traceback_later(600); print(unsafe())", "1 thread besides the main one (native thread 'python"),
        ("t = threading.Thread(target=stop.wait); t.start(); stop.set(); t.join(); print(repr(unsafe()))", "''"),
    ],
)
def test_threads(program: str, said: str) -> None:
    """A thread is named by Python's name for it, or the kernel's where Python knows none; one that has ended is forgotten."""
    assert said in run(program)


def test_names_the_culprit() -> None:
    """A step that leaves a thread behind is named, with the thread; one that does not, is not, and what it raises passes."""
    program = """
t = threading.Thread(target=stop.wait, name='poller')
try:
    with fork_safe("model m/1: importing x.py"):
        t.start()
except Exception as error:
    print(type(error).__name__, error)
stop.set(); t.join()
with fork_safe("nobody"):
    pass
try:
    with fork_safe("nobody"):
        1 / 0
except ZeroDivisionError:
    print("passed")
"""
    line, passed = run(program).splitlines()

    expected = "model m/1: importing x.py left 1 thread besides the main one (Python thread 'poller') in the process that forks"
    assert line.startswith(f"UnshareableError {expected}")
    assert "passed" == passed


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open NVIDIA device is CUDA, and is named."""
    monkeypatch.setattr(fork_safety, "tasks", dict)
    opened = ["/dev/null", "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia0", "/tmp/nvidia"]  # noqa: S108 - only a name
    monkeypatch.setattr(fork_safety, "_open_files", lambda: iter(opened))

    with (
        pytest.raises(UnshareableError, match=r"^it left CUDA, which is open on /dev/nvidia0, /dev/nvidiactl in the process"),
        fork_safety.fork_safe("it"),
    ):
        pass
