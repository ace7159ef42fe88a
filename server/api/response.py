"""The answer to an inference: JSON, and the binary tensors that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from server.api import binary_tensor, json_tensor
from server.api.request import Request, refuse
from server.models.model import Model
from server.refusals import BadInputError, ModelFailedError
from server.tensors import Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that the client gets, and how."""

    spec: TensorSpec
    binary: bool


class OutputTensor(msgspec.Struct, omit_defaults=True, frozen=True):
    """One output in JSON: with its data, or with the number of its bytes after the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class Response(msgspec.Struct, omit_defaults=True, frozen=True):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


_encoder = msgspec.json.Encoder()


def wanted(model: Model, request: Request) -> Sequence[Wanted]:
    """The outputs that `request` asks for, in its order; all if it names none.

    Raises `BadInputError` for an output that the model has not, or that is asked for twice or in a way we refuse.
    """
    default = bool(request.parameters and request.parameters.binary_data_output)
    if not request.outputs:
        return everything(model, binary=default)
    specs = {spec.name: spec for spec in model.outputs}
    result = []
    for asked in request.outputs:
        spec = specs.pop(asked.name, None)
        if spec is None:
            known = ", ".join(repr(spec.name) for spec in model.outputs)
            message = f"model {model.name!r} has no output {asked.name[:64]!r}, or it is asked for twice; it gives {known}"
            raise BadInputError(message)
        refuse(spec.name, asked.parameters)
        binary = asked.parameters.binary_data if asked.parameters else None
        result.append(Wanted(spec, default if binary is None else binary))
    return result


@lru_cache(64)
def everything(model: Model, *, binary: bool) -> Sequence[Wanted]:
    """All outputs, in the model's order."""
    return [Wanted(spec, binary) for spec in model.outputs]


def write(model: Model, given_id: str | None, outputs: Sequence[Wanted], tensors: Tensors) -> tuple[bytes, int | None]:
    """Give the body of the answer and the length of its JSON, which is None where nothing follows it.

    Raises `ModelFailedError` naming an output that is not as declared, `BadInputError` for one that JSON cannot hold.
    """
    described, blobs = [], []
    for output in outputs:
        spec, array = output.spec, tensors[output.spec.name]
        if array.dtype != spec.dtype:
            message = f"output {spec.name!r} must be {spec.datatype}, model {model.name!r} gave {array.dtype}"
            raise ModelFailedError(message)
        if output.binary:
            blob = binary_tensor.encode(spec, array)
            blobs.append(blob)
            described.append(OutputTensor(spec.name, spec.datatype, array.shape, {"binary_data_size": len(blob)}))
        else:
            described.append(OutputTensor(spec.name, spec.datatype, array.shape, data=json_tensor.encode(spec, array)))
    text = _encoder.encode(Response(model.name, str(model.version), described, given_id))
    return (b"".join((text, *blobs)), len(text)) if blobs else (text, None)
