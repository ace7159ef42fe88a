"""Threads that run batches beside the loop, for engines whose work is on another device: one per engine."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from server.worker.loop import Loop

Run = Callable[[], Any]
Then = Callable[[Any], None]


class Assistants:
    """Takes runs, and hands what came of them back to the loop. A worker on the processor alone never has one."""

    def __init__(self, loop: Loop) -> None:
        """Wake `loop` when a run is done."""
        self.loop = loop
        self.queues: dict[str, SimpleQueue[tuple[Run, Then]]] = {}
        self.done: deque[tuple[Then, Any]] = deque()
        self.wake = -1

    def run(self, engine: str, run: Run, then: Then) -> None:
        """Call `run`, which must not raise, in the thread of `engine`, then `then` with its result in the loop."""
        if self.wake < 0:
            self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.loop.add(self.wake, self._finish)
        if engine not in self.queues:
            self.queues[engine] = SimpleQueue()
            threading.Thread(target=self._serve, args=(self.queues[engine],), name=engine, daemon=True).start()
        self.queues[engine].put((run, then))

    def _serve(self, queue: SimpleQueue[tuple[Run, Then]]) -> None:
        while True:
            run, then = queue.get()
            self.done.append((then, run()))
            os.eventfd_write(self.wake, 1)

    def _finish(self, _event: int) -> None:
        os.eventfd_read(self.wake)
        while self.done:
            then, result = self.done.popleft()
            then(result)
