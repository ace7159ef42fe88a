"""Tensors as JSON: `data` flat or nested in row-major order, to and from numpy."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import msgspec
import numpy as np
import simdjson

from server.api.request import INVALID, explain
from server.refusals import BadInputError
from server.tensors import FLOATS, Array, TensorSpec

_NESTED = re.compile(rb"\[\s*\[")
_EMPTY = re.compile(rb"\[[\[\],\s]*\]")
_HALVES = ("FP16", "BF16")
MANY = 256
"""Numbers from which on another reader of JSON pays."""


def decode(spec: TensorSpec, shape: tuple[int, ...], text: bytes) -> Array:
    """Read `data` of the input `spec` in `shape`; its rank is known to be the spec's.

    Raises `BadInputError` for elements of another type, out of range, too many or too few, or nested unlike `shape`.
    """
    count = math.prod(shape)
    if not count and _EMPTY.fullmatch(text):
        return np.zeros(shape, spec.dtype)
    if count >= MANY and spec.datatype in FLOATS and (read := _flat_floats(text)) is not None and read.size == count:
        return _narrow(spec, read).reshape(shape)
    kind: type = {"BOOL": bool, "BYTES": str}.get(spec.datatype, float if spec.datatype in FLOATS else int)
    # Row-major nesting has a comma between every two elements and none elsewhere. Counting them bounds what is allocated.
    came = text.count(b",") + 1
    if came < count or (came > count and kind is not str):
        raise BadInputError(_mismatch(spec, shape, came))
    depth = max(len(shape), 1) if _NESTED.match(text) else 1
    try:
        values = _decoder(kind, depth).decode(text)
    except INVALID as error:
        raise BadInputError(explain(f"data of input {spec.name!r}", error)) from error
    return _array(spec, shape, values, nested=depth > 1)


def _flat_floats(text: bytes) -> Array | None:
    """The numbers of a flat list, read a few times as fast; None for what is no such list, which is then told in words."""
    if text.find(b"[", 1) >= 0:  # the reader would flatten whatever is nested
        return None
    try:
        numbers: Any = simdjson.Parser().parse(text)
        return np.frombuffer(numbers.as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, AttributeError):
        return None


def encode(spec: TensorSpec, array: Array) -> list[Any]:
    """Write an output as flat `data`. Raises `BadInputError` for what JSON has not: ask for binary data."""
    if spec.datatype == "BYTES":
        try:
            return [item.decode() for item in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            message = f"output {spec.name!r} has bytes that are not UTF-8, which JSON cannot hold; ask for it as binary data"
            raise BadInputError(message) from error
    with np.errstate(invalid="ignore"):  # looking at a signalling NaN in bfloat16 warns of it
        finite = spec.datatype not in FLOATS or bool(np.isfinite(array).all())
    if not finite:
        message = f"output {spec.name!r} has NaN or Infinity, which JSON cannot hold; ask for it as binary data"
        raise BadInputError(message)
    wide = array.astype(np.float32) if spec.datatype in _HALVES else array
    values: list[Any] = wide.ravel().tolist()
    return values


@cache
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder of lists, one in the other. There are few, since depth is the rank of some input of some model."""
    wanted: Any = kind
    for _ in range(depth):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


def _array(spec: TensorSpec, shape: tuple[int, ...], values: list[Any], *, nested: bool) -> Array:
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, spec.dtype)
    except OverflowError as error:
        message = f"data of input {spec.name!r} has a number that {spec.datatype} cannot hold"
        raise BadInputError(message) from error
    except ValueError as error:  # lists of different lengths
        raise BadInputError(_nesting(spec, shape)) from error
    if nested and array.shape != shape:
        raise BadInputError(_nesting(spec, shape))
    if array.size != math.prod(shape):
        raise BadInputError(_mismatch(spec, shape, array.size))
    if spec.datatype in FLOATS:
        array = _narrow(spec, array)
    if spec.datatype == "BYTES":
        array = _object_array([text.encode() for text in array.ravel().tolist()])
    return array.reshape(shape)


def _narrow(spec: TensorSpec, numbers: Array) -> Array:
    with np.errstate(over="ignore"):
        array = numbers.astype(spec.dtype, copy=False)
    if not np.isfinite(array).all():  # JSON has no Infinity, so the cast made it
        message = f"data of input {spec.name!r} has a number that {spec.datatype} cannot hold"
        raise BadInputError(message)
    return array


def _object_array(items: list[bytes]) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _mismatch(spec: TensorSpec, shape: tuple[int, ...], came: int) -> str:
    return f"data of input {spec.name!r} must have {math.prod(shape)} elements for shape {list(shape)}, got {came}"


def _nesting(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    return f"data of input {spec.name!r} must be flat or nested as its shape {list(shape)} says"
