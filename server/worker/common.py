"""What all connections of a worker share: the app, its limits, what is held, and whether the worker leaves."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication

from server.refusals import BusyError
from server.serving import Serving
from server.worker.access_log import AccessLog
from server.worker.head import Head, Heads
from server.worker.loop import Loop
from server.worker.tasks import Tasks

BODIES = 4
"""How many of the largest bodies may be held in memory at once; smaller ones as many as are as large together."""


class Common(ABC):
    """What a connection knows of its worker."""

    def __init__(self, worker: Any, loop: Loop, tasks: Tasks, serving: Serving) -> None:
        """Serve the app of gunicorn's `worker`."""
        self.worker = worker
        self.cfg = worker.cfg
        self.log = worker.log
        self.access_log = AccessLog(worker.log)
        self.app: WSGIApplication = worker.wsgi
        self.loop = loop
        self.tasks = tasks
        self.serving = serving
        self.heads = Heads(self.cfg)
        self.keepalive: float = self.cfg.keepalive
        self.max_body = serving.settings.max_body
        self.patience = serving.settings.request_timeout
        self.most_held = BODIES * self.max_body
        self.held = 0
        """Bytes of bodies and of unsent answers, all connections together."""
        self.soon: deque[Callable[[], None]] = deque()
        """What begins the next request of those that have one, and nobody who will tell them."""
        self.surplus = 0
        """How many connections are to be closed, since other workers should have them."""
        self.leaving = False
        self.left = 0.0
        """Since when."""
        self.overdue = False
        """Whether it should have left by now: a client that always has one more request does not keep it for ever."""
        self.refusing = False
        """Whether what comes now is refused: the whole server is going away."""

    @property
    def now(self) -> float:
        """The monotonic clock, in seconds; never remembered, since a batch may have run in between."""
        return time.monotonic()

    @abstractmethod
    def answer(self, connection: Any, head: Head | None) -> None:
        """Answer the request at hand, in its task; `head` is None where gunicorn has to read it."""

    @abstractmethod
    def forget(self, descriptor: int) -> None:
        """A connection is about to be closed."""

    def count_request(self) -> None:
        """One more request; gunicorn's `max_requests` may want this worker to leave."""
        self.worker.count_request()

    def laden(self) -> BusyError:
        """The refusal of what would have to be held beyond the bound."""
        return BusyError(f"{self.held} bytes of requests and answers are held in this worker, at most {self.most_held} may be")

    def refused(self, received_ns: int) -> None:
        """Count a request that the app never saw."""
        self.serving.refused(None, received_ns)
