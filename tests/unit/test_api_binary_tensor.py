"""The binary codec: bytes in, the same bytes out, no copy, and no length that a client can lie about."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.api import binary_tensor
from server.refusals import BadInputError
from server.tensors import DTYPES, TensorSpec

FIXED = sorted(set(DTYPES) - {"BYTES"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def spec(datatype: str, *shape: int) -> TensorSpec:
    """An input of some shape."""
    return TensorSpec("x", datatype, shape, tuple("free" if length < 0 else None for length in shape))


@given(st.sampled_from(FIXED), SHAPES, st.data())
@settings(max_examples=200, deadline=None)
def test_fixed_types_come_back_the_same(datatype: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    """Whatever bytes a client sends for a type of fixed size come back as they were, NaN payloads included."""
    count = int(np.prod(shape, dtype=int))
    size = count * DTYPES[datatype].itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    array = binary_tensor.decode(spec(datatype, *shape), shape, memoryview(raw))
    assert (shape, DTYPES[datatype]) == (array.shape, array.dtype)
    assert raw == bytes(binary_tensor.encode(spec(datatype, *shape), array))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_bytes_come_back_the_same(items: list[bytes]) -> None:
    """BYTES elements of any content keep it."""
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    array = binary_tensor.decode(spec("BYTES", -1), (len(items),), memoryview(raw))
    assert items == array.tolist()
    assert raw == bytes(binary_tensor.encode(spec("BYTES", -1), array))


@given(st.sampled_from(sorted(DTYPES)), SHAPES, st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(datatype: str, shape: tuple[int, ...], raw: bytes) -> None:
    """Whatever bytes come for whatever shape give a tensor of that shape, or `BadInputError`."""
    try:
        array = binary_tensor.decode(spec(datatype, *shape), shape, memoryview(raw))
    except BadInputError:
        return
    assert shape == array.shape


def test_a_fixed_type_is_not_copied() -> None:
    """The array lives on the body that was read, at whatever place in it."""
    body = bytearray(b"?" + np.arange(3, dtype=np.float32).tobytes())
    array = binary_tensor.decode(spec("FP32", -1), (3,), memoryview(body)[1:])
    body[1:5] = np.float32(7).tobytes()
    assert [7, 1, 2] == array.tolist()


def test_an_output_that_is_a_view_is_written_in_its_own_order() -> None:
    """What was cut from a padded batch, or turned, is written row-major without what was cut."""
    array = np.arange(12, dtype=np.int16).reshape(3, 4).T[:2]
    assert array.tobytes() == bytes(binary_tensor.encode(spec("INT16", -1, 3), array))


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", (2,), b"1234567"),
        ("FP32", (2,), b"123456789"),
        ("FP32", (1 << 31, 1 << 31), b"1234"),
        ("BOOL", (2,), b"\x01\x02"),
        ("BYTES", (1,), b"\x01\0\0"),
        ("BYTES", (1,), b"\x02\0\0\0a"),
        ("BYTES", (1,), b"\xff\xff\xff\xff"),
        ("BYTES", (1,), b"\x01\0\0\0ab"),
        ("BYTES", (1 << 31, 1 << 31), b"\0\0\0\0"),
        ("BYTES", (0,), b"\0\0\0\0"),
        ("BYTES", (2,), b"\x03\0\0\0abc\0\0\0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(datatype: str, shape: tuple[int, ...], raw: bytes) -> None:
    """Bytes too few or too many, lengths past the end and shapes of 2**62 elements are `BadInputError` naming the input."""
    with pytest.raises(BadInputError, match="'x'"):
        binary_tensor.decode(spec(datatype, *shape), shape, memoryview(raw))


@pytest.mark.parametrize(
    ("declared", "raw", "shape"),
    [
        (spec("FP32", -1, 3), bytes(24), (2, 3)),
        (spec("FP32", 2, 3), bytes(24), (2, 3)),
        (spec("FP32", -1, 3), b"", (0, 3)),
        (spec("BYTES", -1), b"abc", (1,)),
        (spec("BYTES", 1, 1), b"", (1, 1)),
    ],
)
def test_a_lone_input_gets_the_one_shape_there_is(declared: TensorSpec, raw: bytes, shape: tuple[int, ...]) -> None:
    """Without JSON the free axis takes what came, and BYTES are one element."""
    assert shape == binary_tensor.lone(declared, memoryview(raw)).shape


@pytest.mark.parametrize(
    ("declared", "raw"),
    [
        (spec("FP32", -1, 3), bytes(16)),
        (spec("FP32", -1, -1), bytes(16)),
        (spec("FP32", -1, 0), b""),
        (spec("FP32", 2), bytes(12)),
        (spec("BYTES", -1, 3), b"abc"),
    ],
)
def test_a_lone_input_without_one_shape_is_refused(declared: TensorSpec, raw: bytes) -> None:
    """Without JSON, bytes that leave no shape or several are `BadInputError` naming the input."""
    with pytest.raises(BadInputError, match="'x'"):
        binary_tensor.lone(declared, memoryview(raw))
