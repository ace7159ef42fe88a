"""What the master must not have done before it forks: run threads, touch CUDA. Looked at before each fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.exits import UnshareableError
from server.processes import tasks


def guilt() -> str:
    """Say what makes this process unfit to fork, naming the culprit where it can be named; empty if nothing does."""
    strays = {task: name for task, name in tasks().items() if task != os.getpid()}
    if strays:
        known = {thread.native_id: f"Python thread {thread.name!r}" for thread in threading.enumerate()}
        named = ", ".join(known.get(task, f"native thread {name!r}") for task, name in strays.items())
        return f"{len(strays)} thread{'s' if len(strays) > 1 else ''} besides the main one ({named})"
    devices = sorted({target for target in _open_files() if target.startswith("/dev/nvidia")})
    if devices:
        return f"CUDA, which is open on {', '.join(devices)}"
    return ""


@contextmanager
def innocent(culprit: str) -> Iterator[None]:
    """Run a step of `culprit` after which this process must still be fit to fork; else raise `UnshareableError` naming it."""
    yield
    found = guilt()
    if found:
        message = f"{culprit} left {found} in the process that forks the workers; no child would survive that"
        raise UnshareableError(message)


def _open_files() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield str(entry.readlink())
