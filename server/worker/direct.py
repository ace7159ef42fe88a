"""The synthetic load for workers whose connection code we can't reach: straight into the WSGI app."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import setup_testing_defaults

from server.warmup.rehearsal import Exchange

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def through_app(app: App) -> Exchange:
    """An exchange that calls `app` with the request as its environ."""

    def exchange(request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body)}
        for field in fields:
            name, _, value = field.partition(": ")
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        setup_testing_defaults(environ)
        status: list[str] = []
        content = b"".join(app(environ, lambda given, _headers: status.append(given)))
        return f"HTTP/1.1 {status[0]}\r\n\r\n".encode() + content

    return exchange
