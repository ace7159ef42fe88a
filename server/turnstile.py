"""One inference at a time in a worker that has threads, and a bounded line before it: the way without batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from server.models.model import Model, Prepared
from server.models.shapes import Shape
from server.refusals import BusyError, LateError
from server.tensors import Array

Execute = Callable[[Model, Sequence[Prepared], Shape, int], list[dict[str, Array]]]
"""Runs one batch in a declared shape, on parts that have waited so many nanoseconds in sum; gives what each gets."""


class Turnstile:
    """Lets one thread through. Two inferences at once on one core would each take twice as long."""

    def __init__(self, most: int, patience: float) -> None:
        """Let `most` wait (`WARMFORK_MAX_QUEUE`), for `patience` seconds from when they came (`WARMFORK_REQUEST_TIMEOUT`)."""
        self.interrupted = True  # by the handlers of gunicorn's own workers
        self.most = most
        self.patience = patience
        self.lock = threading.Lock()
        self.waiting = 0
        self.counting = threading.Lock()

    def admit(self) -> None:
        """Nothing: only whoever would have to wait is refused."""

    def run(self, execute: Execute, model: Model, part: Prepared, received_ns: int) -> dict[str, Array]:
        """Run `part` when its turn comes. Raises `BusyError` where the line is full, `LateError` where the turn is too late."""
        queued = time.monotonic_ns()
        if not self.lock.acquire(blocking=False):
            self._wait(received_ns)
        try:
            return execute(model, [part], part.shape, time.monotonic_ns() - queued)[0]
        finally:
            self.lock.release()

    def _wait(self, received_ns: int) -> None:
        with self.counting:
            if self.waiting >= self.most:
                raise full(self.waiting, self.most)
            self.waiting += 1
        try:
            left = self.patience - (time.monotonic_ns() - received_ns) / 1e9
            if not self.lock.acquire(timeout=max(left, 0)):
                raise late(self.patience)
        finally:
            with self.counting:
                self.waiting -= 1


def late(patience: float) -> LateError:
    """The refusal of a request that took longer than it may."""
    return LateError(f"not answered within {patience:g} s (WARMFORK_REQUEST_TIMEOUT)")


def full(waiting: int, most: int) -> BusyError:
    """The refusal of a request that finds the line full."""
    return BusyError(f"{waiting} requests are waiting in this worker, at most {most} may (WARMFORK_MAX_QUEUE)")
