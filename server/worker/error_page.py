"""gunicorn's answers to what it cannot parse, written as the protocol writes errors."""

from __future__ import annotations

import html
import re
from http import HTTPStatus

import msgspec

_MESSAGE = re.compile(r"</h1>\s*(.*?)\s*</body>", re.DOTALL)


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
        status = int(head.split(" ", 2)[1])
        reason = head.partition("\r\n")[0].partition(" ")[2]
        found = _MESSAGE.search(page)
        return refusal(status, f"{reason}: {html.unescape(found[1])}" if found and found[1] else reason)


def refusal(status: int, error: str, retry_after: int | None = None) -> bytes:
    """An answer with an error, after which the connection is closed."""
    body = msgspec.json.encode({"error": error})
    retry = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n{retry}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
