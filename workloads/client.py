"""A client with a kept connection, which does what good clients do when the server wants it closed, and hides nothing else."""

from __future__ import annotations

import socket
from dataclasses import dataclass

PATIENCE = 60.0
"""Seconds without a byte, after which a request has failed."""
_END = b"\r\n\r\n"
_PIECE = 1 << 16
_TCP_CLOSE = 7
"""The kernel's number for a connection that was reset; one that was only closed by the other side is another."""


@dataclass(slots=True)
class Reopened:
    """How often clients had to connect anew."""

    asked: int = 0
    """After an answer with `Connection: close`."""
    found: int = 0
    """The server had closed the idle connection, which was seen before sending."""
    crossed: int = 0
    """The server closed it while a request was on its way, which no worker had and which was sent again."""


class Client:
    """One kept connection; like any pool it looks whether the server has closed it before it sends.

    A request is sent again in one case only: on a connection that was used before, where its first bytes were answered with a
    reset at once: nobody was there any more to read them. Whatever else ends had the request, and is a failure.
    """

    def __init__(self, host: str, port: int, reopened: Reopened) -> None:
        """Connect when first used; count in `reopened`."""
        self.address = (host, port)
        self.reopened = reopened
        self.socket: socket.socket | None = None
        self.port = 0

    def exchange(self, request: bytes) -> str:
        """Send one request and read its answer: why it failed, or nothing. The connection is closed after a failure."""
        try:
            connection = self._send(request)
            status, last, body = _read(connection)
        except (OSError, ValueError, IndexError) as error:  # nobody there, or what is no answer
            self.close()
            return f"{type(error).__name__}: {error}"
        if last:
            self.reopened.asked += 1
            self.close()
        return "" if status == 200 else f"answered {status} {body[:200]!r}"  # noqa: PLR2004 - HTTP's own number

    def _send(self, request: bytes) -> socket.socket:
        if self.socket is not None:
            if _ended(self.socket):
                self.reopened.found += 1
                self.close()
            elif (sent := _begin(self.socket, request)) is not None:
                self.socket.sendall(memoryview(request)[sent:])
                return self.socket
            else:
                self.reopened.crossed += 1
                self.close()
        self.socket = socket.create_connection(self.address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self.socket.getsockname()[1]
        self.socket.sendall(request)
        return self.socket

    def close(self) -> None:
        """Close."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _begin(connection: socket.socket, request: bytes) -> int | None:
    """Send what goes at once: how many bytes, or None if the server's end was gone, which the loopback interface says at once."""
    try:
        sent = connection.send(request)
    except (BrokenPipeError, ConnectionResetError):
        return None
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return None if state == _TCP_CLOSE else sent


def _ended(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(PATIENCE)


def _read(connection: socket.socket) -> tuple[int, bool, bytes]:
    """Status, whether it is the last on this connection, body; raises `ConnectionError` if the answer is cut off."""
    came = b""
    while _END not in came:
        came += _more(connection, came)
    head, _, body = came.partition(_END)
    first, *lines = head.lower().split(b"\r\n")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    pieces, missing = [body], int(fields.get(b"content-length", b"0")) - len(body)
    while missing > 0:
        pieces.append(_more(connection, came))
        missing -= len(pieces[-1])
    return int(first.split()[1]), fields.get(b"connection") == b"close", b"".join(pieces)


def _more(connection: socket.socket, came: bytes) -> bytes:
    piece = connection.recv(_PIECE)
    if not piece:
        message = f"closed after {came[:100]!r}" if came else "closed without an answer"
        raise ConnectionError(message)
    return piece
