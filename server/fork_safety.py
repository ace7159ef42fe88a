"""What the master must not have done before it forks: run threads, touch CUDA. Looked at before each fork."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.exits import UnshareableError
from server.processes import tasks

NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED of the CUDA driver's API."""
ENDING_SECONDS = 1.0
"""How long a thread that has ended may still be seen: the kernel shows it until after whoever joined it goes on."""


def unsafe() -> str:
    """Say what makes this process unfit to fork, naming the culprit where it can be named; empty if nothing does.

    Takes up to `ENDING_SECONDS` where it finds a thread, which may be about to end.
    """
    strays = _strays()
    end = time.monotonic() + ENDING_SECONDS
    while strays and time.monotonic() < end:
        time.sleep(0.01)
        strays = _strays()
    if strays:
        known = {thread.native_id: f"Python thread {thread.name!r}" for thread in threading.enumerate()}
        named = ", ".join(known.get(task, f"native thread {name!r}") for task, name in strays.items())
        return f"{len(strays)} thread{'s' if len(strays) > 1 else ''} besides the main one ({named})"
    if driver := _driver():
        return f"CUDA, which is initialised in {driver}"
    return ""


@contextmanager
def fork_safe(culprit: str, begun: object = "") -> Iterator[None]:
    """Run a step of `culprit` after which this process must still be fit to fork; else raise `UnshareableError` naming it.

    `begun`: whatever says as text, afterwards, where it was begun.
    """
    yield
    found = unsafe()
    if found:
        where = f", begun at {begun}," if str(begun) else ""
        message = f"{culprit} left {found}{where} in the process that forks the workers; no child would survive that"
        raise UnshareableError(message)


def _strays() -> dict[int, str]:
    return {task: name for task, name in tasks().items() if task != os.getpid()}


def _driver() -> str:
    """The CUDA driver, where it is initialised in this process; it says so itself, and is not by that (`cuDeviceGetCount`).

    An open device means nothing: NVML opens it too, by which torch says whether there are GPUs, and survives a fork.
    """
    for path in sorted(_mapped("libcuda.so")):
        count = ctypes.c_int()
        with suppress(OSError):  # the file has been replaced: nobody can ask, and nobody new can begin
            if ctypes.CDLL(path).cuDeviceGetCount(ctypes.byref(count)) != NOT_INITIALIZED:
                return path
    return ""


def _mapped(name: str) -> set[str]:
    """The libraries of this process whose file names begin with `name`."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {line.partition("/")[2] for line in lines if name in line}
    return {f"/{path}" for path in paths if Path(path).name.startswith(name)}
