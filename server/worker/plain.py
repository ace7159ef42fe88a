"""Requests that are plain, nearly all: the app is run on the environ that the head gave, and its answer written by us."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from server.refusals import AbandonedError
from server.worker.reply import Reply

if TYPE_CHECKING:
    from server.worker.connection import Connection
    from server.worker.front import Front
    from server.worker.head import Head


def answer(connection: Connection, front: Front, head: Head) -> None:
    """Answer one request of `connection`, in a task."""
    environ = head.environ
    connection.reply = reply = Reply(connection.send, closes=connection.closing(wanted=head.closes))
    try:
        result = front.app(environ, reply.start)
        try:
            if isinstance(result, list) and len(result) == 1:
                reply.body(result[0], last=True)
            else:
                for data in result:
                    reply.body(data)
                    connection.drain()
                reply.end()
        finally:
            if hasattr(result, "close"):
                result.close()
        front.log_access(reply, environ, connection.received_ns)
    except AbandonedError:
        connection.close()
    except BaseException:  # noqa: BLE001 - whatever an app raises, the others are served on
        what = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}"
        connection.fail(sys.exc_info()[1], what, started=reply.started)
    else:
        connection.finish(closes=reply.closes or reply.short)
