"""One inference: body, tensors, model, tensors, answer. Whatever comes of it is counted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import falcon

from server import environ
from server.api import body, inputs, response
from server.api.inputs import Described
from server.api.request import parse
from server.api.response import Wanted
from server.models.model import Model
from server.refusals import BadInputError
from server.serving import Served
from server.tensors import Array

_KNOWN = 256
_SHORT = 2048
"""How many descriptions of binary tensors are remembered, and of how many bytes at most."""
HEADER_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON, in requests and answers; what follows is tensors."""


class Infer:
    """`…/infer`."""

    def __init__(self, served: Served) -> None:
        """Answer for what `served` gives at each request."""
        self._served = served

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None) -> None:
        """Answer with the model's outputs. Raises `RefusalError` for anything else."""
        received_ns = req.env.get(environ.RECEIVED) or time.monotonic_ns()
        served, model = self._served(), None
        try:
            served.admit()
            model = served.find(name, version)
            self._answer(req, resp, model, received_ns)
        except Exception:
            served.refused(model, received_ns)
            raise

    def _answer(self, req: falcon.Request, resp: falcon.Response, model: Model, received_ns: int) -> None:
        served = self._served()
        begun_ns = time.monotonic_ns()
        came = body.read(req.env, served.settings.max_body)
        served.admit()  # again, since others may have come while the body did
        tensors, outputs, given_id = _read(model, req.env, came)
        input_ns = time.monotonic_ns() - begun_ns
        results = served.infer(model, tensors, received_ns)
        inferred_ns = time.monotonic_ns()
        resp.data, length = response.write(model, given_id, outputs, results)
        if length is not None:
            resp.content_type = "application/octet-stream"
            resp.set_header(HEADER_LENGTH, str(length))
        served.answered(model, received_ns, input_ns, time.monotonic_ns() - inferred_ns)


class _Asked(NamedTuple):
    """What the JSON of a request asks for."""

    inputs: Sequence[Described]
    outputs: Sequence[Wanted]
    id: str | None


def _asked(model: Model, text: bytes | memoryview) -> _Asked:
    request = parse(text)
    outputs = response.wanted(model, request)
    return _Asked(inputs.describe(model, request), outputs, request.id)


# PERF: a client that sends binary tensors sends the same JSON before them again and again.
_asked_before = lru_cache(_KNOWN)(_asked)


def _read(
    model: Model, env: Mapping[str, Any], came: bytes | memoryview
) -> tuple[dict[str, Array], Sequence[Wanted], str | None]:
    """The inputs, the outputs that are wanted, and the request's id."""
    length = _header_length(env, len(came))
    view = memoryview(came)
    if length == 0:
        return inputs.read_lone(model, view), response.everything(model, binary=True), None
    end = len(came) if length is None else length
    text = view[:end]
    asked = _asked_before(model, bytes(text)) if end <= _SHORT and end < len(came) else _asked(model, text)
    return inputs.read(asked.inputs, view[end:]), asked.outputs, asked.id


def _header_length(env: Mapping[str, Any], size: int) -> int | None:
    text = env.get(environ.HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= size):  # noqa: PLR2004 - what 64 bits hold
        message = f"{HEADER_LENGTH} must be a number of bytes from 0 to the body's {size}, got {text[:64]!r}"
        raise BadInputError(message)
    return int(text)
