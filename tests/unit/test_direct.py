"""The synthetic load straight into a WSGI app."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.validate import validator

import pytest

from server.warmup import own_request, samples
from server.worker.direct import through_app
from tests.unit.fakes import model


def test_request_arrives_whole() -> None:
    """The app sees the method, the path, the header and the body of the request, and its answer comes back as HTTP."""
    seen: dict[str, Any] = {}
    made = model()
    content = own_request.content(made, samples.inputs(made, (2,)), binary=True)
    body = content.partition(b"\r\n\r\n")[2]

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen.update(environ, body=environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        start_response("201 Created", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"o", b"k"]

    answer = through_app(app)(content)

    assert re.match(rb"HTTP/1\.. 201 Created\r\n.*\r\n\r\nok$", answer, re.DOTALL)
    assert ("POST", "/v2/models/m/versions/1/infer", body) == (seen["REQUEST_METHOD"], seen["PATH_INFO"], seen["body"])
    assert ("application/octet-stream", "warmfork") == (seen["CONTENT_TYPE"], seen["HTTP_HOST"])
    assert int(seen["HTTP_INFERENCE_HEADER_CONTENT_LENGTH"]) < len(body)


@pytest.mark.filterwarnings("ignore:QUERY_STRING")  # which the standard lets be absent
def test_is_wsgi() -> None:
    """The app is called as the standard says, its answer closed included."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    made = model()
    for binary in (True, False):
        content = own_request.content(made, samples.inputs(made, (1,)), binary=binary)
        assert through_app(validator(app))(content).endswith(b"ok")
