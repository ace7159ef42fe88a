"""The synthetic load for workers whose connection code we can't reach: straight into the WSGI app."""

from __future__ import annotations

import io
import sys
from wsgiref.handlers import SimpleHandler
from wsgiref.types import WSGIApplication

from server.warmup.own_request import Exchange


def through_app(app: WSGIApplication) -> Exchange:
    """An exchange that calls `app` with the request as its environ."""

    def exchange(request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": ""}
        environ |= {"SERVER_NAME": "warmfork", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1"}
        for field in fields:
            name, _, value = field.partition(": ")
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        answer = io.BytesIO()
        SimpleHandler(io.BytesIO(body), answer, sys.stderr, environ).run(app)
        return answer.getvalue()

    return exchange
