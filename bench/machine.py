"""What ran the benchmark: facts that belong beside a figure, and cores for what must not disturb each other."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from server import __version__, gpus

STACK = (
    "gunicorn",
    "gunicorn_h1c",
    "falcon",
    "numpy",
    "onnxruntime",
    "msgspec",
    "torch",
    "tokenizers",
    "sentence-transformers",
    "uvloop",
)
DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM")
"""Put before a command: it is told to end when the thread that has started it ends, however that does."""
CORES = sorted(os.sched_getaffinity(0))
"""What we were given, before anything is kept to one of them."""


def facts() -> dict[str, Any]:
    """Return the processor, the memory, the load and the versions."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("model name")[2].partition("\n")[0].strip("\t :")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu or platform.machine(),
        "cores": len(CORES),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "warmfork": __version__,
        "gpus": gpus.chosen("auto", os.environ),
        **{name: version(name) for name in STACK},
    }


@contextmanager
def pinned(*turns: int) -> Iterator[None]:
    """Keep what is started inside to some of our cores: the first for 0, the second for 1; the same one if there is but one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[turn % len(CORES)] for turn in turns})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
