"""From a request to the tensors of its model, each checked against what the model declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.api import binary_tensor, json_tensor
from server.api.request import ABSENT, Input, Request, refuse
from server.models.model import Model
from server.refusals import BadInputError
from server.tensors import ANY, Array, TensorSpec


class Described(NamedTuple):
    """An input as a request describes it: it is one that the model has, in a shape that it takes."""

    spec: TensorSpec
    shape: tuple[int, ...]
    size: int | None
    """Bytes of it behind the JSON; None where the JSON has it."""
    text: bytes
    """The data as JSON; empty where it is behind it."""


def describe(model: Model, request: Request) -> list[Described]:
    """All inputs of `model`, in the order of the request. Raises `BadInputError` naming the input, the bound and what came."""
    specs = {spec.name: spec for spec in model.inputs}
    described: dict[str, Described] = {}
    for given in request.inputs:
        spec = specs.get(given.name)
        if spec is None:
            message = f"model {model.name!r} has no input {given.name[:64]!r}; it takes {_names(model.inputs)}"
            raise BadInputError(message)
        if spec.name in described:
            message = f"input {spec.name!r} is given twice"
            raise BadInputError(message)
        refuse(spec.name, given.parameters)
        shape = tuple(given.shape)
        if given.datatype != spec.datatype or not spec.takes(shape):
            raise BadInputError(_wrong(spec, given))
        size = given.parameters.binary_data_size if given.parameters else None
        text = b"" if given.data is ABSENT else bytes(given.data)
        if (size is None) == (not text):
            both = "both data and" if text else "neither data nor"
            message = f"input {spec.name!r} has {both} the parameter binary_data_size; one of them is needed"
            raise BadInputError(message)
        described[spec.name] = Described(spec, shape, size, text)
    missing = [spec for spec in model.inputs if spec.name not in described]
    if missing:
        message = f"model {model.name!r} needs {_names(model.inputs)}; missing: {_names(missing)}"
        raise BadInputError(message)
    return list(described.values())


def read(described: Sequence[Described], rest: memoryview) -> dict[str, Array]:
    """All inputs by name; `rest` is what follows the JSON in the body, and all of it must be an input's.

    Raises `BadInputError` as `describe`.
    """
    tensors: dict[str, Array] = {}
    for spec, shape, size, text in described:
        if size is None:
            tensors[spec.name] = json_tensor.decode(spec, shape, text)
            continue
        if size > len(rest):
            message = f"input {spec.name!r} has binary_data_size {size}, left in the body are {len(rest)} bytes"
            raise BadInputError(message)
        tensors[spec.name] = binary_tensor.decode(spec, shape, rest[:size])
        rest = rest[size:]
    if len(rest):
        message = f"{len(rest)} bytes follow the last input; every byte after the JSON must be in some binary_data_size"
        raise BadInputError(message)
    return tensors


def read_lone(model: Model, body: memoryview) -> dict[str, Array]:
    """The one input of `model`, where the body is its bytes and nothing else; raise `BadInputError` if it has more."""
    if len(model.inputs) != 1:
        message = f"model {model.name!r} takes {_names(model.inputs)}: a body without JSON holds exactly one input"
        raise BadInputError(message)
    spec = model.inputs[0]
    return {spec.name: binary_tensor.lone(spec, body)}


def _wrong(spec: TensorSpec, given: Input) -> str:
    """What is wrong with the type or the shape of an input."""
    if given.datatype != spec.datatype:
        return f"input {spec.name!r} must be {spec.datatype}, got {given.datatype[:64]!r}"
    if len(given.shape) != len(spec.shape):
        return f"input {spec.name!r} must have {len(spec.shape)} axes, as in {list(spec.shape)}, got {len(given.shape)}"
    if any(declared not in (ANY, length) for declared, length in zip(spec.shape, given.shape, strict=True)):
        return f"input {spec.name!r} must have shape {list(spec.shape)}, where -1 is any length; got {given.shape}"
    return f"input {spec.name!r} must have at least 1 along every axis, got shape {given.shape}"


def _names(specs: list[TensorSpec] | tuple[TensorSpec, ...]) -> str:
    return ", ".join(repr(spec.name) for spec in specs) or "none"
