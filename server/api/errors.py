"""How an error reaches the client: a status and `{"error": "<sentence>"}`, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import falcon
import falcon.constants
import msgspec

from server.api.body import CLOSING, TooLargeBodyError
from server.refusals import BusyError, RefusalError

_log = logging.getLogger("gunicorn.error")


class KnownMethods:
    """Middleware that answers 405 to a method that HTTP does not know, where falcon would answer 400."""

    def process_resource(self, req: falcon.Request, _resp: falcon.Response, resource: object, _params: object) -> None:
        """Raise `HTTPMethodNotAllowed` with the methods that the resource has."""
        if req.method not in falcon.constants.COMBINED_METHODS:
            names = {name.split("_")[1] for name in dir(resource) if name.startswith("on_")}
            raise falcon.HTTPMethodNotAllowed(sorted(name.upper() for name in names))


class _AnswerThenDrain:
    """A response that is followed by the drain of the request: WSGI calls `close` when all has been sent."""

    def __init__(self, content: bytes, error: TooLargeBodyError) -> None:
        self._content = content
        self.close = error.drain

    def __iter__(self) -> Iterator[bytes]:
        yield self._content


def install(app: falcon.App[falcon.Request, falcon.Response]) -> None:
    """Make every error of `app` JSON."""
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(MemoryError, _out_of_memory)
    app.add_error_handler(RefusalError, _refused)
    app.add_error_handler(falcon.HTTPError, _http)


def _refused(_req: falcon.Request, resp: falcon.Response, error: Exception, _params: object) -> None:
    refusal = error if isinstance(error, RefusalError) else RefusalError(str(error))
    content = _say(resp, refusal.status, str(refusal))
    if refusal.retry_after is not None:
        resp.set_header("Retry-After", str(refusal.retry_after))
    if isinstance(error, CLOSING):
        resp.set_header("Connection", "close")
    if isinstance(error, TooLargeBodyError):
        resp.stream = _AnswerThenDrain(content, error)
        resp.content_length = len(content)
        resp.data = None


def _out_of_memory(req: falcon.Request, resp: falcon.Response, _error: Exception, params: object) -> None:
    _refused(req, resp, BusyError("memory ran out for this request"), params)


def _http(req: falcon.Request, resp: falcon.Response, error: Exception, _params: object) -> None:
    if not isinstance(error, falcon.HTTPError):  # pragma: no cover - falcon passes what the handler was added for
        raise error
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    _say(resp, error.status_code, _sentence(req, error))


def _sentence(req: falcon.Request, error: falcon.HTTPError) -> str:
    if isinstance(error, falcon.HTTPNotFound):
        return f"no such address: {req.path[:256]}"
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        allowed = dict(error.headers or {}).get("Allow", "")
        return f"{req.method[:32]} is not allowed at {req.path[:256]}; allowed: {allowed}"
    return error.description or error.title or str(error.status)


def _unexpected(_req: falcon.Request, resp: falcon.Response, error: Exception, _params: object) -> None:
    _log.error("a request failed", exc_info=error)
    _say(resp, 500, "the server failed on this request")


def _say(resp: falcon.Response, status: int, sentence: str) -> bytes:
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.text = None
    resp.data = content = msgspec.json.encode({"error": sentence})
    return content
