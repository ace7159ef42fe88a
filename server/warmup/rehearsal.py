"""A short load of our own through the whole way: the connection's code, the parser, the WSGI app, the codec, the model.

All of these are cold in a new process too: a model warmed alone answers its first HTTP request far more slowly than the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np

from server.exits import ModelError
from server.models.model import Model
from server.models.shapes import Shape
from server.tensors import Array, Tensors
from server.warmup import samples
from server.warmup.polite import FULL_SPEED, Pace

ROUNDS = 2
"""Times that every shape is sent, in every encoding, at least."""
MOST_ROUNDS = 10
MOST_SECONDS = 2.0
"""After which no further round begins."""

Exchange = Callable[[bytes], bytes]
"""Sends the bytes of one HTTP request the whole way through this worker, and gives the bytes of its response."""


def rehearse(
    model: Model,
    exchange: Exchange,
    say: Callable[[str], None],
    pace: Pace = FULL_SPEED,
) -> None:
    """Send every shape of `model` as JSON and as binary tensors, again and again for a while.

    Raises `ModelError` naming the shape if an answer is not 200, or the 95th percentile if it is past the model's bound.
    """
    requests = [
        (request(model, inputs, binary=binary), where(model, shape, binary=binary))
        for shape, inputs in shaped_inputs(model)
        for binary in (False, True)
        if binary or (fits_json(inputs) and fits_json(pace.aside(partial(model.infer, inputs))))
    ]
    times: list[float] = []
    end = time.monotonic() + MOST_SECONDS
    for turn in range(MOST_ROUNDS):
        for content, what in requests:
            say(what)
            took, answer = pace.here(partial(timed, exchange, content, pace))
            if turn:  # the first round is what makes it warm
                times.append(took * 1e3)
            expect_ok(answer, what)
        if turn + 1 >= ROUNDS and time.monotonic() > end:
            break
    bound = model.files.toml.p95_ms
    if bound is None:
        return
    p95 = sorted(times)[math.ceil(0.95 * len(times)) - 1]
    if p95 > bound:
        message = f"model {model.key}: p95 of {len(times)} requests of our own is {p95:.1f} ms, its p95_ms is {bound:g}"
        raise ModelError(message)


def where(model: Model, shape: Shape, *, binary: bool) -> str:
    """What a request is about, for the log."""
    return f"model {model.key}, shape {model.plan.describe(shape)}, {'binary' if binary else 'JSON'} over HTTP"


def timed(exchange: Exchange, content: bytes, pace: Pace) -> tuple[float, bytes]:
    """Seconds, less those for which others had the processor, and the answer."""
    before, start = pace.waited(), time.perf_counter()
    answer = exchange(content)
    return time.perf_counter() - start - (pace.waited() - before), answer


def request(model: Model, inputs: Tensors, *, binary: bool) -> bytes:
    """The bytes of an inference request for `inputs`, which keeps its connection."""
    tail = b""
    tensors = []
    for spec in model.inputs:
        array = inputs[spec.name]
        tensor: dict[str, object] = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if binary:
            raw = _raw(array)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = _listed(array)
        tensors.append(tensor)
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": binary}})
    length = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
    kind = "application/octet-stream" if binary else "application/json"
    return (
        (
            f"POST /v2/models/{model.name}/versions/{model.version}/infer HTTP/1.1\r\n"
            f"Host: warmfork\r\nUser-Agent: warmfork-rehearsal\r\nContent-Type: {kind}\r\n{length}"
            f"Content-Length: {len(head) + len(tail)}\r\n\r\n"
        ).encode()
        + head
        + tail
    )


def shaped_inputs(model: Model) -> Iterator[tuple[Shape, dict[str, Array]]]:
    """Inputs in every shape."""
    for shape in model.shapes():
        yield shape, samples.inputs(model, shape)


def fits_json(tensors: Tensors) -> bool:
    """Whether JSON can carry every item: it has no bytes that are not text, and no infinity."""
    try:
        return all(_fits(array) for array in tensors.values())
    except UnicodeDecodeError:
        return False


def _fits(array: Array) -> bool:
    if array.dtype == object:
        return all(item.decode() is not None for item in array.ravel())
    return array.dtype.kind in "biu" or bool(np.isfinite(array).all())


def _listed(array: Array) -> list[object]:
    if array.dtype == object:
        return [item.decode() for item in array.ravel()]
    plain = array if array.dtype.kind in "biuf" else array.astype(np.float32)
    listed: list[object] = plain.ravel().tolist()
    return listed


def _raw(array: Array) -> bytes:
    if array.dtype == object:
        return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel())
    return array.tobytes()


def expect_ok(answer: bytes, where: str) -> None:
    """Raise `ModelError` that says `where` unless the status of `answer` is 200."""
    status = answer[:64].split(b"\r\n", 1)[0]
    if b" 200 " not in status:
        body = answer.partition(b"\r\n\r\n")[2][:300].decode(errors="replace")
        message = f"{where}: answered {status.decode(errors='replace') or 'nothing'}: {' '.join(body.split())}"
        raise ModelError(message)
