"""What gunicorn's `gthread` leaves open about connections: how long a silent client holds a thread, and how an error reads."""

from __future__ import annotations

import html
import logging
import re
import socket
import struct

import msgspec

SILENT_SECONDS = 5
"""How long a client may be silent in the middle of a request, or not take its answer."""

_MESSAGE = re.compile(r"</h1>\s*(.*?)\s*</body>", re.DOTALL)


def bound_silence(sock: socket.socket) -> None:
    """End a blocking read or write of `sock` after `SILENT_SECONDS`: a thread would otherwise wait for a client for ever.

    The kernel's own limit, since gunicorn takes Python's off at each request.
    """
    seconds = struct.pack("ll", SILENT_SECONDS, 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, seconds)


def is_noteworthy(record: logging.LogRecord) -> bool:
    """Whether a record belongs into the log: a client that fell silent does not."""
    return not (record.exc_info and isinstance(record.exc_info[1], BlockingIOError))


class ErrorPage:
    """Stands in for the client's socket while gunicorn writes its HTML page for a request that it could not parse."""

    def __init__(self) -> None:
        """Begin with nothing written."""
        self.written = b""

    def gettimeout(self) -> float:
        """As a socket that does not block."""
        return 0.0

    def sendall(self, content: bytes) -> None:
        """Keep what is written."""
        self.written += content

    def as_json(self) -> bytes:
        """The same answer with the error as the protocol writes it."""
        head, _, page = self.written.decode("latin-1").partition("\r\n\r\n")
        line = head.partition("\r\n")[0]
        found = _MESSAGE.search(page)
        reason = line.partition(" ")[2]
        error = f"{reason}: {html.unescape(found[1])}" if found and found[1] else reason
        body = msgspec.json.encode({"error": error})
        return (
            f"{line}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
