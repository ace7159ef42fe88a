"""Requests that are plain, nearly all: the app is run on the environ that the head gave, and its answer written by us."""

from __future__ import annotations

from functools import partial
from wsgiref.types import WSGIApplication

from server.refusals import AbandonedError
from server.worker.common import Common
from server.worker.connection import Connection
from server.worker.head import Environ, Head
from server.worker.reply import Reply


def answer(connection: Connection, front: Common, head: Head) -> None:
    """Answer one request of `connection`, in a task."""
    environ = head.environ
    reply = Reply(connection.sendall, partial(connection.closing, wanted=head.closes))
    try:
        try:
            _run(front.app, environ, reply, connection)
        finally:
            front.access_log.write(reply, environ, connection.received_ns)
    except AbandonedError:
        connection.close()
    except BaseException as error:  # noqa: BLE001 - whatever an app raises, the others are served on
        connection.fail(error, f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}")
    else:
        connection.finish(closes=reply.closes or reply.short)


def _run(app: WSGIApplication, environ: Environ, reply: Reply, connection: Connection) -> None:
    result = app(environ, reply.start)
    try:
        if isinstance(result, list) and len(result) == 1:
            reply.body(result[0], last=True)
            return
        for data in result:
            reply.body(data)
            connection.drain()
        reply.end()
    finally:
        if hasattr(result, "close"):
            result.close()
