"""The WSGI app of the management process: routes, status codes and headers; what they say is read elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import falcon
import msgspec

from server.management.status import report
from server.management.view import View
from server.readiness import Verdict

PAGE = Path(__file__).with_name("page.html")

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Probe:
    """200 with `{"<word>": true}`, or 503 with `false` and the reasons."""

    def __init__(self, word: str, judge: Callable[[], Verdict]) -> None:
        """Answer with what `judge` says at each request."""
        self._word = word
        self._judge = judge

    def on_get(self, _: falcon.Request, response: falcon.Response) -> None:
        """Answer a probe."""
        verdict = self._judge()
        answer: dict[str, object] = {self._word: verdict.ready}
        if not verdict.ready:
            response.status = falcon.HTTP_503
            answer["reasons"] = verdict.reasons
        _json(response, answer)

    on_head = on_get


class StatusResource:
    """`/status`."""

    def __init__(self, view: View) -> None:
        """Report on `view`."""
        self._view = view

    def on_get(self, _: falcon.Request, response: falcon.Response) -> None:
        """Answer with everything."""
        _json(response, report(self._view))

    on_head = on_get


class MetricsResource:
    """`/metrics`."""

    def __init__(self, view: View) -> None:
        """Measure `view`."""
        self._view = view

    def on_get(self, _: falcon.Request, response: falcon.Response) -> None:
        """Answer with Prometheus text."""
        # PERF: the client library is a tenth of our start, and no probe needs it.
        from server.management import metrics  # noqa: PLC0415

        response.content_type = metrics.CONTENT_TYPE
        response.data = metrics.render(self._view)

    on_head = on_get


class PageResource:
    """`/`: one page for people, which fetches `/status` and nothing else."""

    def __init__(self) -> None:
        """Read the page and allow exactly the script and the style that are in it."""
        self._page = PAGE.read_bytes()
        script, style = (_hash(self._page, tag) for tag in (b"script", b"style"))
        self._policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def on_get(self, _: falcon.Request, response: falcon.Response) -> None:
        """Answer with the page."""
        response.content_type = falcon.MEDIA_HTML
        response.set_header("Content-Security-Policy", self._policy)
        response.data = self._page

    on_head = on_get


class _Headers:
    """Puts the headers that every answer has, errors included."""

    def process_request(self, _: falcon.Request, response: falcon.Response) -> None:
        response.set_headers(dict(HEADERS))


def create(view: View) -> falcon.App[falcon.Request, falcon.Response]:
    """Make the app that answers for `view`."""
    app = falcon.App(middleware=[_Headers()])
    app.set_error_serializer(_error)
    app.add_route("/livez", Probe("live", view.live))
    app.add_route("/readyz", Probe("ready", view.ready))
    app.add_route("/startupz", Probe("started", view.started))
    app.add_route("/status", StatusResource(view))
    app.add_route("/metrics", MetricsResource(view))
    app.add_route("/", PageResource())
    return app


def _json(response: falcon.Response, answer: object) -> None:
    response.content_type = falcon.MEDIA_JSON
    response.data = msgspec.json.encode(answer)


def _error(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    if error.status_code == falcon.http_status_to_code(falcon.HTTP_405):
        what = f"{request.path} answers GET and HEAD, not {request.method}"
    elif error.status_code == falcon.http_status_to_code(falcon.HTTP_404):
        what = f"no such path: {request.path}"
    else:
        what = error.description or error.title
    _json(response, {"error": what})


def _hash(page: bytes, tag: bytes) -> str:
    """The source expression of Content-Security-Policy for the one inline element `tag`."""
    found = re.search(b"<" + tag + b">(.*?)</" + tag + b">", page, re.DOTALL)
    if not found:
        message = f"{PAGE} has no <{tag.decode()}>"
        raise ValueError(message)
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
