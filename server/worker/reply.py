"""Answers of the app as bytes: what gunicorn's `Response` writes, for requests whose head was plain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

from gunicorn import SERVER
from gunicorn.http.errors import (  # type: ignore[attr-defined] # the stubs leave them out
    InvalidResponseHeader,
    InvalidResponseHeaderName,
)
from gunicorn.http.message import TOKEN_RE
from gunicorn.http.wsgi import HEADER_VALUE_RE, STATUS_RE  # type: ignore[attr-defined] # as above
from gunicorn.util import hop_headers, http_date

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], None]

_HOPS = frozenset(hop_headers)
_KNOWN = 1024
_date = (0, "")


@dataclass(frozen=True, slots=True)
class Fields:
    """A status and header fields of an app, looked at."""

    headers: list[tuple[str, str]]
    """Those that are sent."""
    text: str
    """They, as they are sent."""
    length: int | None
    """What the app says of its body's length."""
    bare: bool
    """Whether an answer of this status has no body."""
    closes: bool
    """Whether the app wants the connection closed."""


# PERF: an app answers with the same few fields again and again.
@lru_cache(_KNOWN)
def _fields(status: str, headers: tuple[tuple[str, str], ...]) -> Fields:
    if not STATUS_RE.fullmatch(status):
        message = f"Invalid status {status!r}"
        raise ValueError(message)
    bare = status.startswith(("204", "304", "1"))
    sent: list[tuple[str, str]] = []
    length = None
    for name, value in headers:
        if not TOKEN_RE.fullmatch(name):
            raise InvalidResponseHeaderName(repr(name))
        if not HEADER_VALUE_RE.fullmatch(value):
            raise InvalidResponseHeader(repr(name))
        known = name.lower()
        if known == "content-length":
            length = int(value)
        if known not in _HOPS and not (bare and known == "content-length"):
            sent.append((name, value.strip(" \t")))
    text = "".join([f"{name}: {value}\r\n" for name, value in sent])
    return Fields(sent, text, length, bare, ends(headers))


class Reply:
    """One answer: what the app says of it, then its bytes."""

    __slots__ = ("chunked", "closes", "closing", "fields", "length", "sent", "started", "status", "write")

    def __init__(self, write: Write, closing: Callable[[], bool]) -> None:
        """Hand bytes to `write`; `closing`, asked when the head is written, says whether the connection ends with it."""
        self.write = write
        self.closing = closing
        self.closes = False
        self.status = ""
        self.fields = _NOTHING
        self.length: int | None = None
        self.chunked = False
        self.started = False
        self.sent = 0
        """Bytes of the body."""

    def start(self, status: str, headers: Sequence[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """WSGI's `start_response`. Raises what gunicorn does for a status or field that must not be sent."""
        if exc_info and self.started and exc_info[1]:
            raise exc_info[1].with_traceback(exc_info[2])
        if self.status and not exc_info:
            message = "Response headers already set!"
            raise AssertionError(message)
        self.fields = fields = _fields(status, tuple(map(tuple, headers)))
        self.status = status
        self.length = fields.length
        return self.body

    def body(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of the body; `last`: there is no other, so that its length is known where the app did not say it."""
        if not self.started:
            if self.length is None and last:
                self.length = len(data)
            data = self._head() + (self._framed(data) if data else b"")
        else:
            data = self._framed(data)
        if data:
            self.write(data)

    def end(self) -> None:
        """All of the body was sent."""
        if not self.started:
            self.body(b"", last=True)
        elif self.chunked:
            self.write(b"0\r\n\r\n")

    @property
    def short(self) -> bool:
        """Whether less was sent than said, so that the client can tell only by the end of the connection."""
        return not self.chunked and not self.fields.bare and self.sent != self.length

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The app's fields, for the access log."""
        return self.fields.headers

    def _head(self) -> bytes:
        self.started = True
        fields = self.fields
        self.closes = fields.closes or self.closing()
        self.chunked = self.length is None and not fields.bare
        framing = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        length = "" if self.length == fields.length or fields.bare else f"Content-Length: {self.length}\r\n"
        connection = "close" if self.closes else "keep-alive"
        return (
            f"HTTP/1.1 {self.status}\r\nServer: {SERVER}\r\nDate: {_now()}\r\nConnection: {connection}\r\n"
            f"{framing}{fields.text}{length}\r\n"
        ).encode("latin-1")

    def _framed(self, data: bytes) -> bytes:
        if self.fields.bare or not data:
            return b""
        if self.chunked:
            self.sent += len(data)
            return b"%X\r\n%b\r\n" % (len(data), data)
        data = data[: max(0, (self.length or 0) - self.sent)]
        self.sent += len(data)
        return data


def ends(headers: Sequence[tuple[str, str]]) -> bool:
    """Whether an app wants the connection closed after its answer."""
    return any(name.lower() == "connection" and value.lower() == "close" for name, value in headers)


_NOTHING = Fields([], "", None, bare=False, closes=False)


def _now() -> str:
    global _date  # noqa: PLW0603 - one date for all answers of a second
    second = int(time.time())
    if _date[0] != second:
        _date = (second, http_date(second))
    return _date[1]
