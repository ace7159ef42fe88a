"""What makes a process unfit to fork, each tried in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fake_gpu.libcuda import LibCuda

START = """
import faulthandler, os, threading
from server import environment
from server.fork_safety import fork_safe, unsafe
stop = threading.Event()
"""


def run(program: str, environ: Mapping[str, str] | None = None) -> str:
    """What `program` prints in a process that has done nothing else, with `environ` besides our own."""
    command, given = [sys.executable, "-c", START + program], {**os.environ, **(environ or {})}
    asked = subprocess.run(command, cwd=Path(__file__).parents[2], env=given, capture_output=True, check=True, text=True)
    return asked.stdout.strip()


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


def test_driver(tmp_path: Path) -> None:
    """The driver itself is asked whether anybody has initialised it, wherever it lies; to have it loaded is harmless."""
    program = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
print(repr(unsafe()))
driver.cuInit(0)
print(unsafe())
"""
    library = LibCuda(tmp_path / "driver")
    before, after = run(program, library.environ).splitlines()

    assert "''" == before
    assert f"CUDA, which is initialised in {library.folder}/libcuda.so.1" == after
