"""A thread that sleeps beside the loop and wakes when a batch hangs: no Python of the loop's own runs then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_SECONDS = 0.25
"""How often it looks. Each look takes the interpreter for some microseconds."""


class Watchdog:
    """Calls `bite` once a batch has run for longer than `limit` seconds. Batches may run in several threads."""

    def __init__(self, bite: Callable[[], None]) -> None:
        """Begin with nothing to watch; `bite` must end the process."""
        self.bite = bite
        self.limit = float("inf")
        self.running: dict[int, float] = {}
        """By thread, when its batch must have ended."""
        self.stopped = threading.Event()
        self.biting = False

    def start(self, limit: float) -> None:
        """Watch from now on."""
        self.limit = limit
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self.stopped.set()

    def begin(self) -> None:
        """This thread begins a batch."""
        self.running[threading.get_ident()] = time.monotonic() + self.limit

    def end(self) -> None:
        """This thread's batch has ended. One that ends when all who waited are being told that it has not, never does."""
        del self.running[threading.get_ident()]
        if self.biting:
            threading.Event().wait()

    def _watch(self) -> None:
        while not self.stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            if any(end < now for end in list(self.running.values())):
                self.biting = True
                self.bite()
