"""Which line of a file began a thread."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.processes import tasks
from server.warmup.witness import Witness

HEAD = "import threading\nfrom tests.unit.test_witness import begin, end\n"
_stop = threading.Event()
_begun: list[threading.Thread] = []


def begin() -> None:
    """Begin a thread that stays until `end`."""
    thread = threading.Thread(target=_stop.wait)
    thread.start()
    _begun.append(thread)


def end() -> None:
    """End all of them; the kernel shows a thread for a moment after its end."""
    left, deadline = len(tasks()) - len(_begun), time.monotonic() + 10
    _stop.set()
    while _begun:
        _begun.pop().join()
    _stop.clear()
    while len(tasks()) > left and time.monotonic() < deadline:
        os.sched_yield()


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """No thread outlives its test."""
    yield
    end()


@pytest.mark.parametrize(
    ("source", "blamed"),
    [
        ("x = 1\nbegin()\ny = 2\n", "4: begin()"),
        ("def f():\n    begin()\n    return 1\nx = f()\n", "4: begin()"),
        ("def f(): return 1\nbegin(); f()\nx = 2\n", "4: begin(); f()"),
        ("begin()\nend()\nx = 1\n", ""),
        ("begin()\nend()\nbegin()\nx = 1\n", "5: begin()"),
        ("class A:\n    def __init__(self):\n        begin()\nx = A()\n", "5: begin()"),
        ("x = 1\n", ""),
        ("begin()", "3: begin()"),
    ],
)
def test_the_line_that_did_it(tmp_path: Path, source: str, blamed: str) -> None:
    """The line is named that called what began the thread, and none for threads that have ended."""
    path = tmp_path / "model.py"
    path.write_text(HEAD + source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("witnessed", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    witness = Witness(path)

    with witness.watching():
        spec.loader.exec_module(module)

    assert (f"{path}:{blamed}" if blamed else "") == str(witness)
