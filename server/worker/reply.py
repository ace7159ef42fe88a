"""Answers of the app as bytes: what gunicorn's `Response` writes, for requests whose head was plain."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
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

_NAMES = 64
_names: dict[str, str] = {}
"""Field names that were looked at before, in lower case."""
_statuses: set[str] = set()
"""Statuses that were looked at before."""
_HOPS = frozenset(hop_headers)
_date = (0, "")


class Reply:
    """One answer: what the app says of it, then its bytes."""

    __slots__ = ("bare", "chunked", "closes", "headers", "length", "sent", "started", "status", "write")

    def __init__(self, write: Write, *, closes: bool) -> None:
        """Hand bytes to `write`; `closes`: say that the connection ends with it."""
        self.write = write
        self.closes = closes
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.length: int | None = None
        self.bare = False
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
        if status not in _statuses and not _is_status(status):
            message = f"Invalid status {status!r}"
            raise ValueError(message)
        self.status = status
        # An answer of such a status has no body.
        self.bare = status.startswith(("204", "304", "1"))
        self.headers = []
        self.length = None
        # PERF: a value is right if all its characters are, so all values are looked at together.
        right = HEADER_VALUE_RE.fullmatch("".join([value for _, value in headers]))
        for name, value in headers:
            known = _names.get(name)
            if known is None:
                known = _learn(name)
            if not right and not HEADER_VALUE_RE.fullmatch(value):
                raise InvalidResponseHeader(repr(name))
            if known == "content-length":
                self.length = int(value)
            if known == "connection":
                self.closes = self.closes or value.lower() == "close"
            elif known not in _HOPS:
                self.headers.append((name, value.strip(" \t")))
        return self.body

    def body(self, data: bytes, *, last: bool = False) -> None:
        """Send a part of the body; `last`: there is no other, so that its length is known where the app did not say it."""
        if not self.started:
            if self.length is None and last:
                self.length = len(data)
                self.headers.append(("Content-Length", str(self.length)))
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
        return not self.chunked and not self.bare and self.sent != self.length

    def _head(self) -> bytes:
        self.started = True
        if self.bare:
            self.headers = [(name, value) for name, value in self.headers if name.lower() != "content-length"]
        self.chunked = self.length is None and not self.bare
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        framing = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        connection = "close" if self.closes else "keep-alive"
        return (
            f"HTTP/1.1 {self.status}\r\nServer: {SERVER}\r\nDate: {_now()}\r\nConnection: {connection}\r\n{framing}{fields}\r\n"
        ).encode("latin-1")

    def _framed(self, data: bytes) -> bytes:
        if self.bare or not data:
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


def _learn(name: str) -> str:
    if not TOKEN_RE.fullmatch(name):
        raise InvalidResponseHeaderName(repr(name))
    known = name.lower()
    if len(_names) < _NAMES:
        _names[sys.intern(name)] = known
    return known


def _is_status(status: str) -> bool:
    if STATUS_RE.fullmatch(status) and len(_statuses) < _NAMES:
        _statuses.add(status)
    return bool(STATUS_RE.fullmatch(status))


def _now() -> str:
    global _date  # noqa: PLW0603 - one date for all answers of a second
    second = int(time.time())
    if _date[0] != second:
        _date = (second, http_date(second))
    return _date[1]
