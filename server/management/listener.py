"""Waitress within bounds, so that a probe waits behind nobody: one request per connection, a short life, so many at once.

Waitress by itself stops accepting when its connections are used up, never ends one whose client does not read, and lets a
client that pipelines hold all threads.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Callable
from typing import Any, cast
from wsgiref.types import WSGIApplication

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

LIFE = 10.0
"""Seconds that a connection may exist, from accept to the last byte of its answer."""

CONNECTIONS = 1024
"""Open connections; one more ends the oldest."""

BURST = 64
"""Connections accepted in one turn of the loop."""

SPARE_DESCRIPTORS = 64 + BURST
"""Kept from connections for all else that is open, and for a burst before the oldest are ended."""

THREADS = 4


class _Task(WSGITask):
    """Answers with `Connection: close`: who wants more connects again, so that nobody holds a thread by pipelining."""

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        return super().build_response_header()


class _Parser(HTTPRequestParser):
    """Answers 400 to an address that cannot be taken apart, where waitress itself would write an error to the log."""

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:
            message = "Bad URI"
            raise ParsingError(message) from None


class _Channel(HTTPChannel):
    task_class = _Task
    parser_class = _Parser

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN003  # all waitress's
        # Not waitress's own times, which are the wall clock's and jump with it.
        self.end = time.monotonic() + LIFE
        super().__init__(*args, **kwargs)


class Listener(TcpWSGIServer):
    """Serves a WSGI app on a socket that is bound, whether it listens already or not."""

    channel_class = _Channel

    def __init__(self, app: WSGIApplication, sock: socket.socket) -> None:
        """Listen at once: what connects from now on is answered as soon as `run` is called."""
        self.takes = True
        for name in ("waitress", "waitress.queue"):
            # Whatever a client does is no line in our log.
            logging.getLogger(name).setLevel(logging.ERROR)
        limits = Adjustments(
            sockets=[sock],
            ident="",
            threads=THREADS,
            backlog=CONNECTIONS,
            max_request_header_size=16 << 10,
            max_request_body_size=1 << 10,
            log_socket_errors=False,
        )
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(limits.threads)
        self.most = max(min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS), 1)
        info = (sock.family, sock.type, sock.proto, sock.getsockname())
        self._sockets: dict[int, Any] = {}  # waitress keeps them here, the listening one and its own pipe included
        super().__init__(app, self._sockets, _sock=sock, dispatcher=dispatcher, adj=limits, sockinfo=info, bind_socket=False)

    def run(self, begins: Callable[[], bool] = lambda: True, ends: Callable[[], bool] = lambda: False) -> None:
        """Serve from when `begins` holds until `ends` does, both asked once a second at least; end with the last client."""
        while not (over := ends()) or self._channels:
            self.takes = begins() and not over
            # Between turns alone: a descriptor closed within one could be given to a new connection, which would then get
            # the events of the old.
            self._end_connections()
            self.asyncore.loop(timeout=1, use_poll=True, map=self._sockets, count=1)

    def readable(self) -> bool:
        """Whether to accept: also where there are many, since the oldest make room."""
        return self.takes

    def handle_accept(self) -> None:
        """Accept all that has come, not one connection a turn: a turn looks at every connection there is."""
        for _ in range(BURST):
            before = len(self._channels)
            super().handle_accept()
            if len(self._channels) == before:
                return

    @property
    def _channels(self) -> dict[int, _Channel]:
        """Open connections in the order they were accepted in."""
        return cast("dict[int, _Channel]", self.active_channels)

    def _end_connections(self) -> None:
        """End what has outlived its time, and the oldest where there are too many."""
        now = time.monotonic()
        while self._channels:
            oldest = next(iter(self._channels.values()))
            if oldest.end > now and len(self._channels) <= self.most:
                return
            oldest.handle_close()
