"""Requests that are not plain: gunicorn's own parser and response, waiting in a task instead of blocking a thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, cast

from gunicorn.http import wsgi
from gunicorn.http.errors import LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import Unreader

from server.environ import RECEIVED, RESERVE
from server.refusals import AbandonedError, RefusalError
from server.worker.common import Common
from server.worker.connection import Connection
from server.worker.error_page import ErrorPage
from server.worker.head import END, LONG, PIECES
from server.worker.reply import ends

_LINE_END = b"\r\n"
_PIECE = 1 << 11
_LEFT = 64
"""KiB of a body that nobody read, which are read to reach the next request; gunicorn reads as much."""


class _Head:
    """A head on its way. gunicorn says that a line is too long only once the whole head is there, up to 800 kB."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self.most = max(limits["limit_request_field_size"], limits["limit_request_line"] + len(_LINE_END))
        self.line = 0
        """Bytes of the line that has no end yet."""
        self.tail = b""

    def check(self) -> None:
        """Raise `LimitRequestHeaders` if that is too long already."""
        if self.line > self.most:
            message = f"a line of more than {self.most} bytes"
            raise LimitRequestHeaders(message)

    def ends_in(self, data: bytes) -> bool:
        """Whether the head is whole with `data`, which comes next."""
        return END in self.tail + data

    def add(self, data: bytes) -> None:
        seen = self.tail + data
        end = seen.rfind(_LINE_END)
        self.line = len(seen) - end - len(_LINE_END) if end >= 0 else self.line + len(data)
        self.tail = seen[1 - len(END) :]


class _Source(Unreader):
    """What gunicorn reads from: it waits for the client, and lets others be served meanwhile."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.head = _Head(connection.front.heads.limits)
        self.body = False
        """Whether the head has been read."""
        self.given = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        connection = self.connection
        if not self.body:
            self.head.check()
        data = connection.more()
        if not self.body:
            # gunicorn looks at all of the head again with each piece: of a long one the pieces must be long, too.
            while LONG < self.given > len(data) * PIECES and not self.head.ends_in(data) and (more := connection.more()):
                data += more
            self.head.add(data)
        elif len(data) > _PIECE >= (size_hint or 0):
            # Nor does it look for the ends of small chunks in all that there is without copying it for each of them.
            data, connection.ahead = data[:_PIECE], data[_PIECE:] + connection.ahead
        self.given += len(data)
        if self.body and not connection.speaking:  # else it is read to be thrown away
            connection.reserve(len(data))
        return data


def answer(connection: Connection, front: Common) -> None:
    """Read and answer one request of `connection`, in a task."""
    source = _Source(connection)
    request: Any = None
    try:
        request = Request(front.cfg, source, connection.client)
        source.body = True
        connection.interim = request.version >= (1, 1)
        connection.latest = time.monotonic() + front.patience
        closes = _answer(request, source, front)
    except (AbandonedError, NoMoreData, StopIteration):  # gone, or gone before it had said all
        connection.close()
    except RefusalError as error:
        connection.refuse(error)
    except ParseException as error:
        connection.conclude(_error_page(request, connection, error))
    except BaseException as error:  # noqa: BLE001 - whatever an app or a hook raises, the others are served on
        connection.fail(error, f"{request.method} {request.uri}" if request else "that was not read")
    else:
        if not closes:
            connection.ahead = source.take_buffered() + connection.ahead
        connection.finish(closes=closes)


def _answer(request: Any, source: _Source, front: Common) -> bool:
    """Run the app on `request`; whether the connection is to be closed."""
    connection = source.connection
    begun = datetime.now()  # noqa: DTZ005 - gunicorn's access log takes the difference
    front.cfg.pre_request(front.worker, request)
    sock: Any = connection
    made: Any = wsgi.create(request, sock, connection.client, connection.server, front.cfg)
    response, environ = made
    environ["wsgi.multithread"] = True
    environ[RECEIVED] = time.monotonic_ns()
    environ[RESERVE] = connection.reserve
    try:
        result = front.app(environ, partial(_start, response, source))
        try:
            for item in result:
                response.write(item)
                connection.drain()
            response.close()
        finally:
            front.log.access(response, request, environ, datetime.now() - begun)  # noqa: DTZ005 - as above
            if hasattr(result, "close"):
                result.close()
    finally:
        try:
            front.cfg.post_request(front.worker, request, environ, response)
        except Exception:  # the answer is the same, whatever a hook does afterwards; as gunicorn's workers
            front.log.exception("Exception in post_request hook")
    return response.should_close() or request.body.failed or not _drained(request.body, connection)


def _start(response: Any, source: _Source, status: str, headers: Any, exc_info: Any = None) -> Any:
    """WSGI's `start_response`: gunicorn's forgets `Connection: close`, and knows nothing of workers that leave."""
    connection, reader = source.connection, response.req.body.reader
    whole = getattr(reader, "length", 0) == 0 and getattr(reader, "parser", None) is None
    if whole:  # what was read behind it is the next request
        connection.ahead = source.take_buffered() + connection.ahead
    if ends(headers) or connection.closing(wanted=connection.front.leaving and not whole):
        response.force_close()
    return response.start_response(status, headers, exc_info)


def _drained(body: Any, connection: Connection) -> bool:
    """Whether the rest of a body could be read, so that what follows is the next request. Nothing is refused: all was said."""
    connection.hurry()
    try:
        return any(not body.read(1024) for _ in range(_LEFT))
    except (RefusalError, ParseException, OSError):
        return False


def _error_page(request: Any, connection: Connection, error: BaseException) -> bytes:
    """gunicorn's answer to what it could not parse, as JSON."""
    page = ErrorPage()
    connection.front.worker.handle_error(request, cast("socket.socket", page), connection.client, error)
    connection.front.refused(time.monotonic_ns())
    return page.as_json()
