"""Reading the body of a request: whole, decoded, and never more than the bound."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from gunicorn.http.errors import ParseException

from server.environ import RESERVE
from server.refusals import BadInputError, SlowError, TooLargeError, too_large

STEP = 1 << 16
"""Bytes that are read or unpacked at once where the whole is not known."""

MEMBERS = 256
"""The most members that a gzip body may have: each costs a decoder, however little is in it."""

_CODINGS: Mapping[str, int | None] = {"": None, "identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content codings and zlib's name for their formats."""

_UNREADABLE = (OSError, ParseException)
"""What gunicorn raises for a body that ends early, comes too slowly or is chunked wrongly."""


class BrokenBodyError(BadInputError):
    """The body could not be read to its end, so nothing more can be read from this connection."""


class SlowBodyError(SlowError):
    """The body did not come in time, so nothing more can be read from this connection."""


class TooLargeBodyError(TooLargeError):
    """The body was not read to its end, since it is over the bound."""

    def __init__(self, message: str, source: Callable[[int], bytes | memoryview], bound: int) -> None:
        """`source` has the rest of the body; at most `bound` bytes of it are worth reading."""
        super().__init__(message)
        self._source = source
        self._bound = bound

    def drain(self) -> None:
        """Read the rest and throw it away, so that a client that is still sending reads its answer.

        It would only see a reset connection otherwise. One that sends far too much is on its own.
        """
        left = self._bound
        with suppress(*_UNREADABLE, SlowError):
            while left > 0 and (part := self._source(min(left, STEP))):
                left -= len(part)


CLOSING = (BrokenBodyError, SlowBodyError, TooLargeBodyError)
"""After these the connection is of no more use."""


def read(environ: Mapping[str, Any], limit: int) -> bytes | memoryview:
    """Read the body of the request in a WSGI environment, at most `limit` bytes after any decoding.

    Where the worker has all of it in memory already, that memory is given, without a copy. Raises `TooLargeError` over the limit,
    `SlowError` for a client that stopped sending, and `BadInputError` if the body is not what its headers say.
    """
    coding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding not in _CODINGS:
        message = f"Content-Encoding must be gzip, deflate or identity, got {coding[:64]!r}"
        raise BadInputError(message)
    # NOTE: falcon's own streams read a chunked body as an empty one.
    source = environ["wsgi.input"]
    body: bytes | memoryview
    try:
        if "HTTP_TRANSFER_ENCODING" in environ:
            body = _chunked(source.read, limit)
        else:
            body = _sized(getattr(source, "take", source.read), _length(environ), limit)
    except (TimeoutError, SlowError) as error:
        raise SlowBodyError(str(error)) from error
    except _UNREADABLE as error:
        message = "the body could not be read: it ended early, came too slowly or is not chunked as HTTP says"
        raise BrokenBodyError(message) from error
    wbits = _CODINGS[coding]
    return body if wbits is None else _unpack(body, coding, wbits, limit, environ.get(RESERVE, int))


def _length(environ: Mapping[str, Any]) -> int:
    text = environ.get("CONTENT_LENGTH") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 18):  # noqa: PLR2004 - what 64 bits hold
        message = f"Content-Length must be a number of bytes, got {text[:64]!r}"
        raise BrokenBodyError(message)
    return int(text)


def _sized(source: Callable[[int], bytes | memoryview], length: int, limit: int) -> bytes | memoryview:
    if length > limit:
        raise TooLargeBodyError(too_large(f"{length} bytes", limit), source, 2 * limit)
    body = source(length) if length else b""
    if len(body) == length:
        return body
    parts, came = [body], len(body)
    while part := source(length - came):
        parts.append(part)
        came += len(part)
        if came == length:
            return b"".join(parts)
    message = f"body ended after {came} of {length} bytes"
    raise BrokenBodyError(message)


def _chunked(source: Callable[[int], bytes], limit: int) -> bytes:
    parts, came = [], 0
    while part := source(STEP):
        came += len(part)
        if came > limit:
            raise TooLargeBodyError(too_large(f"more than {limit} bytes", limit), source, 2 * limit)
        parts.append(part)
    return b"".join(parts)


def _unpack(body: bytes | memoryview, coding: str, wbits: int, limit: int, reserve: Callable[[int], object]) -> bytes:
    view, parts, place, size = memoryview(body), [], 0, 0
    for _ in range(MEMBERS):
        decoder = zlib.decompressobj(wbits)
        while not decoder.eof:
            window = view[place : place + STEP]
            if not window:
                message = f"the {coding} body ended in the middle, after {len(body)} bytes"
                raise BadInputError(message)
            try:
                part = decoder.decompress(window, limit - size + 1)
            except zlib.error as error:
                message = f"the body is not {coding}: {error}"
                raise BadInputError(message) from error
            place += len(window)
            size += len(part)
            if size > limit:
                message = f"the body must be at most {limit} bytes (WARMFORK_MAX_BODY), unpacked it is more"
                raise TooLargeError(message)
            reserve(len(part))
            parts.append(part)
        place -= len(decoder.unused_data)
        if place == len(body):
            return b"".join(parts)
    message = f"the {coding} body has more than {MEMBERS} members"
    raise BadInputError(message)
