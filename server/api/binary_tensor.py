"""Tensors as the bytes of the binary tensor data extension: little-endian, row-major, to and from numpy."""

from __future__ import annotations

import math
import struct

import numpy as np

from server.refusals import BadInputError
from server.tensors import ANY, Array, TensorSpec

_PREFIX = struct.Struct("<I")
SMALL = 4096
"""Bytes up to which a copy costs less than a view."""


def decode(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    """Read the input `spec` in `shape`. What has a fixed size is not copied: the array is read-only and lives on `data`.

    Raises `BadInputError` if `data` is not what `shape` needs.
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _decode_bytes(spec, count, data).reshape(shape)
    needed = count * spec.dtype.itemsize
    if len(data) != needed:
        message = f"input {spec.name!r} needs {needed} bytes for {spec.datatype} {list(shape)}, got {len(data)}"
        raise BadInputError(message)
    if spec.datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        message = f"input {spec.name!r} is BOOL: every byte must be 0 or 1"
        raise BadInputError(message)
    return np.frombuffer(data, spec.dtype).reshape(shape)


def encode(spec: TensorSpec, array: Array) -> bytes | memoryview:
    """Write the output `spec`."""
    if spec.datatype == "BYTES":
        parts: list[bytes] = []
        for item in array.ravel().tolist():
            parts += (_PREFIX.pack(len(item)), item)
        return b"".join(parts)
    if array.nbytes <= SMALL:
        return array.tobytes()
    # The buffer protocol does not know bfloat16, so the bytes are what is handed on.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def infer_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of a lone input that came as `size` bytes and nothing else: one free axis takes what there is.

    BYTES is then one element. Raises `BadInputError` where that leaves more than one shape, or none.
    """
    if spec.datatype == "BYTES":
        shape = tuple(1 if length == ANY else length for length in spec.shape)
        if math.prod(shape) != 1:
            message = f"input {spec.name!r} has {math.prod(shape)} elements, a body without JSON holds one of BYTES"
            raise BadInputError(message)
        return shape
    free = spec.shape.count(ANY)
    fixed = math.prod(length for length in spec.shape if length != ANY) * spec.dtype.itemsize
    if free > 1 or (free and not fixed):
        message = f"input {spec.name!r} has shape {list(spec.shape)}: a body without JSON leaves it open, send the shape"
        raise BadInputError(message)
    if free and size % fixed:
        message = f"input {spec.name!r} with shape {list(spec.shape)} needs a multiple of {fixed} bytes, got {size}"
        raise BadInputError(message)
    return tuple(size // fixed if length == ANY else length for length in spec.shape)


def lone(spec: TensorSpec, data: memoryview) -> Array:
    """Read the lone input `spec` from a body that is nothing else; raise `BadInputError` if it does not fit."""
    shape = infer_shape(spec, len(data))
    if spec.datatype == "BYTES":
        array = np.empty(1, object)
        array[0] = bytes(data)
        return array.reshape(shape)
    return decode(spec, shape, data)


def _decode_bytes(spec: TensorSpec, count: int, data: memoryview) -> Array:
    if count * _PREFIX.size > len(data):
        message = f"input {spec.name!r} has {len(data)} bytes, {count} elements need at least {count * _PREFIX.size}"
        raise BadInputError(message)
    array = np.empty(count, object)
    place = 0
    for index in range(count):
        start = place + _PREFIX.size
        if start > len(data):
            message = f"input {spec.name!r} ends in the length of element {index}"
            raise BadInputError(message)
        place = start + _PREFIX.unpack_from(data, place)[0]
        if place > len(data):
            message = f"element {index} of input {spec.name!r} has {place - start} bytes, left are {len(data) - start}"
            raise BadInputError(message)
        array[index] = bytes(data[start:place])
    if place != len(data):
        message = f"input {spec.name!r} has {len(data) - place} bytes after its {count} elements"
        raise BadInputError(message)
    return array
