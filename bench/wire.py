"""A connection of a load generator: it never blocks, and looks at an answer no more than it must."""

from __future__ import annotations

import select
import socket
from functools import lru_cache

_END = b"\r\n\r\n"
_PIECE = 1 << 16
"""Bytes; a buffer over 128 KB would be mapped and unmapped for each call, which takes longer than all the rest."""


class Wire:
    """One kept connection, which `poll` watches; a server that asks for a new one gets it."""

    def __init__(self, port: int, poll: select.epoll, wires: dict[int, Wire]) -> None:
        """Connect, and stand in `wires` by descriptor; the server accepts when it likes."""
        self.port = port
        self.poll = poll
        self.wires = wires
        self.reopened = 0
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.poll.register(self.socket, select.EPOLLIN)
        self.wires[self.socket.fileno()] = self
        self.unsent = memoryview(b"")
        self.came = b""
        self.missing = 0

    def send(self, request: bytes) -> None:
        """Send what goes at once; the rest goes by `flush`, while other connections are read."""
        sent = self.socket.send(request)
        if sent < len(request):
            self.unsent = memoryview(request)[sent:]
            self.poll.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        """Send more, now that there is room."""
        self.unsent = self.unsent[self.socket.send(self.unsent) :]
        if not self.unsent:
            self.poll.modify(self.socket, select.EPOLLIN)

    def receive(self) -> bool:
        """Read what has come; whether the answer is complete. Raises `ConnectionError` for any answer but 200."""
        piece = self.socket.recv(_PIECE)
        if not piece:
            message = f"closed after {self.came[:300]!r}, {self.missing} bytes missing"
            raise ConnectionError(message)
        if self.missing:
            self.missing -= len(piece)
        else:
            self.came += piece
            end = self.came.find(_END)
            if end < 0:
                return False
            length, self.last = _read(self.came[:end])
            if length < 0:
                message = f"answered {self.came[:400]!r}"
                raise ConnectionError(message)
            self.missing = length - (len(self.came) - end - len(_END))
            self.came = b""
        if self.missing:
            return False
        if self.last:
            self.reopened += 1
            self.close()
            self._connect()
        return True

    def close(self) -> None:
        """Close."""
        del self.wires[self.socket.fileno()]
        self.socket.close()


@lru_cache(64)  # most heads of a run are the same, to the second in which they were written
def _read(head: bytes) -> tuple[int, bool]:
    """The length of the body, -1 if the status is not 200; whether the server closes after it."""
    status, *lines = head.lower().split(b"\r\n")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = int(fields.get(b"content-length", b"0")) if b" 200 " in status + b" " else -1
    return length, fields.get(b"connection") == b"close"
