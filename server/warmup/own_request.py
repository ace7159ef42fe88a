"""A request of our own, which takes the whole way through this worker: what it says, sending it, judging the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from server.exits import ModelError
from server.models.model import Model
from server.models.shapes import Shape
from server.tensors import Array, Tensors
from server.warmup import samples
from server.warmup.polite import Pace

Exchange = Callable[[bytes], bytes]
"""Sends the bytes of one HTTP request the whole way through this worker, and gives the bytes of its response."""


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """One inference."""

    shape: Shape
    content: bytes
    """An HTTP request, which keeps its connection."""
    where: str
    """What it is about, for the log."""

    def send(self, exchange: Exchange, pace: Pace) -> float:
        """Seconds until its answer, less those for which others had the processor. Raises `ModelError` if that is not 200."""
        with pace.clock() as clock:
            start = clock()
            answer = exchange(self.content)
            took = clock() - start
        status = answer[:64].split(b"\r\n", 1)[0]
        if b" 200 " not in status:
            body = answer.partition(b"\r\n\r\n")[2][:300].decode(errors="replace")
            message = f"{self.where}: answered {status.decode(errors='replace') or 'nothing'}: {' '.join(body.split())}"
            raise ModelError(message)
        return took


def requests(model: Model, pace: Pace, json: Callable[[Shape], bool] = lambda _: True) -> list[OwnRequest]:
    """One for every shape of `model` as binary tensors, and before it as JSON where `json` wants that and JSON can carry it."""
    made = []
    for shape in model.shapes():
        inputs = samples.inputs(model, shape)
        where = f"model {model.key}, shape {model.plan.describe(shape)}"
        if json(shape) and fits_json(inputs) and fits_json(pace.aside(partial(model.infer, inputs))):
            made.append(OwnRequest(shape, content(model, inputs, binary=False), f"{where}, JSON over HTTP"))
        made.append(OwnRequest(shape, content(model, inputs, binary=True), f"{where}, binary over HTTP"))
    return made


def content(model: Model, inputs: Tensors, *, binary: bool) -> bytes:
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
