"""What each worker holds of memory, looked up by one thread and at most every few seconds.

The kernel walks a process's page tables for it, which takes the longer the more is mapped, and meanwhile that process's own
changes to its mappings wait. So nobody who reads the status can make it happen more often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

import msgspec

from server import processes

INTERVAL = 3.0
"""Seconds between two looks at the same process."""

SHARE = 0.05
"""The most of one core that looking may take; the interval grows to keep it."""

PATIENCE = 0.2
"""Seconds that a reader waits for processes that were never looked at."""


class Memory(msgspec.Struct, frozen=True):
    """Bytes of one process; None while it has not been looked at, or cannot be."""

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    private_bytes: int | None = None


class MemoryReader:
    """Looks only while someone asks, so that a server that nobody watches pays nothing."""

    def __init__(self, interval: float = INTERVAL) -> None:
        """Start the thread; `interval` is in seconds."""
        self._interval = interval
        self._changed = threading.Condition()
        self._wanted: frozenset[int] = frozenset()
        self._known: dict[int, Memory] = {}
        self._next = 0.0
        threading.Thread(target=self._run, name="memory", daemon=True).start()

    def read(self, pids: Iterable[int]) -> Mapping[int, Memory]:
        """Return what is known of `pids`. New ones are looked at first, which is waited for briefly; the rest may be old."""
        wanted = frozenset(pids)
        with self._changed:
            self._wanted = wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: wanted <= self._known.keys(), PATIENCE)
            return {pid: self._known.get(pid, Memory()) for pid in wanted}

    def _run(self) -> None:
        while True:
            with self._changed:
                # Looked at again only when a reader notifies: time that passes wakes nobody.
                self._changed.wait_for(self._due)
                everyone = time.monotonic() >= self._next
                pids = self._wanted if everyone else self._wanted - self._known.keys()
            begin = time.monotonic()
            found = {pid: _look(pid) for pid in pids}
            end = time.monotonic()
            with self._changed:
                if everyone:
                    self._known = found
                    self._next = end + max(self._interval, (end - begin) / SHARE)
                else:
                    self._known.update(found)
                self._changed.notify_all()

    def _due(self) -> bool:
        return bool(self._wanted) and (time.monotonic() >= self._next or not self._wanted <= self._known.keys())


def _look(pid: int) -> Memory:
    held = processes.memory(pid)
    if not held:
        return Memory()
    return Memory(held.get("Rss"), held.get("Pss"), held.get("Private_Clean", 0) + held.get("Private_Dirty", 0))
