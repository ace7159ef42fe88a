"""Calls that are made again and again beside what a test does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self


class Repeat:
    """`with Repeat(call) as repeat:` calls again and again until its end, from `threads` threads, `pause` seconds apart.

    `results` are what `call` gave or raised, each after the time of the monotonic clock at which the call began, and before the
    seconds it took.
    """

    def __init__(self, call: Callable[[], object], threads: int = 1, pause: float = 0.0) -> None:
        """Prepare to call `call`."""
        self.call = call
        self.pause = pause
        self.results: list[tuple[float, Any, float]] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._repeat) for _ in range(threads)]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the calls at hand."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _repeat(self) -> None:
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                result = self.call()
            except Exception as error:  # noqa: BLE001 - what went wrong is a result as well
                result = error
            self.results.append((began, result, time.monotonic() - began))
            self.stopped.wait(self.pause)
