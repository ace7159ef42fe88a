"""One inference at a time in a worker, and a bounded line before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from server.refusals import BusyError, LateError

HUNG_SECONDS = 5.0
"""An inference that takes twice as long as a request may, and this longer, is held to be hung."""


class Turnstile:
    """Lets one thread through. Two inferences at once on one core would each take twice as long."""

    def __init__(self, most: int, patience: float) -> None:
        """Let `most` wait (`WARMFORK_MAX_QUEUE`), for `patience` seconds from when they came (`WARMFORK_REQUEST_TIMEOUT`)."""
        self.most = most
        self.patience = patience
        self.lock = threading.Lock()
        self.waiting = 0
        self.counting = threading.Lock()
        self.entered_ns = 0
        """When the inference at hand began, by the monotonic clock; 0 while there is none."""

    @contextmanager
    def enter(self, received_ns: int) -> Iterator[None]:
        """Wait for a turn and hold it. Raises `BusyError` where the line is full, `LateError` where the turn comes too late."""
        if not self.lock.acquire(blocking=False):
            self._wait(received_ns)
        self.entered_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.entered_ns = 0
            self.lock.release()

    def _wait(self, received_ns: int) -> None:
        with self.counting:
            if self.waiting >= self.most:
                message = f"{self.waiting} requests are waiting in this worker, at most {self.most} may (WARMFORK_MAX_QUEUE)"
                raise BusyError(message)
            self.waiting += 1
        try:
            left = self.patience - (time.monotonic_ns() - received_ns) / 1e9
            if not self.lock.acquire(timeout=max(left, 0)):
                raise late(self.patience)
        finally:
            with self.counting:
                self.waiting -= 1

    def hung(self) -> bool:
        """Whether the inference at hand is so far past the limit of a request that it will not end; a slow one gets its 504."""
        entered = self.entered_ns
        return bool(entered) and (time.monotonic_ns() - entered) / 1e9 > 2 * self.patience + HUNG_SECONDS


def late(patience: float) -> LateError:
    """The refusal of a request that took longer than it may."""
    return LateError(f"not answered within {patience:g} s (WARMFORK_REQUEST_TIMEOUT)")
