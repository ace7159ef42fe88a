"""How long a thread has waited for a processor, and how long what it did took without that, as the kernel counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COUNTED = Path("/proc/thread-self/schedstat")
"""Where the kernel says how long a thread has waited for a processor, if it counts that."""
LONGEST_LINE = 64
"""Bytes: three numbers of 64 bits."""


@contextmanager
def own_clock() -> Iterator[Callable[[], float]]:
    """Give a clock of seconds that stands still while this thread waits for a processor; any clock where nobody counts that."""
    try:
        file = os.open(COUNTED, os.O_RDONLY)
    except OSError:
        yield time.perf_counter
        return

    def look() -> float:
        return _parsed(os.pread(file, LONGEST_LINE, 0))[1]

    def clock() -> float:
        while True:
            # PERF: a look at what is open takes a microsecond or two, and a short run takes that longer.
            kept, now = look(), time.perf_counter()
            if look() == kept:  # else it waited in between: a short run could seem to take less than nothing
                return now - kept

    try:
        yield clock
    finally:
        os.close(file)


def waited() -> float:
    """Seconds that this thread has waited for a processor; 0 where the kernel does not count them."""
    return counted(COUNTED)[1]


def counted(file: Path) -> tuple[float, float]:
    """Seconds that a thread has run and has waited for a processor, as its `schedstat` says; 0 where nobody counts them."""
    with suppress(OSError):
        return _parsed(file.read_bytes())
    return 0.0, 0.0


def _parsed(line: bytes) -> tuple[float, float]:
    with suppress(ValueError):
        ran, kept, _ = line.split()
        return int(ran) / 1e9, int(kept) / 1e9
    return 0.0, 0.0
