"""The JSON codec: what numpy holds goes out and comes back the same, and nothing hostile gets past it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.api import json_tensor
from server.refusals import BadInputError
from server.tensors import DTYPES, FLOATS, Array, TensorSpec

NUMERIC = [name for name in DTYPES if name not in ("BYTES", "BF16")]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def spec(datatype: str, rank: int = 1) -> TensorSpec:
    """An input of free axes."""
    return TensorSpec("x", datatype, (-1,) * rank, tuple(f"x.{axis}" for axis in range(rank)))


def finite(datatype: str) -> st.SearchStrategy[Array]:
    """Arrays of a datatype, without what JSON has not."""
    dtype = DTYPES[datatype]
    elements = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    return SHAPES.flatmap(lambda shape: hnp.arrays(dtype, shape, elements=elements))


@given(data=st.data(), datatype=st.sampled_from(NUMERIC), nested=st.booleans())
@settings(max_examples=300, deadline=None)
def test_numbers_come_back_the_same(data: st.DataObject, datatype: str, *, nested: bool) -> None:
    """Every finite array of every numeric datatype survives the way out and in, flat and nested, bit for bit."""
    array = data.draw(finite(datatype))
    flat = json_tensor.encode(spec(datatype, array.ndim), array)
    wide = array.astype(np.float32) if datatype == "FP16" else array
    text = msgspec.json.encode(wide.tolist() if nested and array.ndim else flat)
    back = json_tensor.decode(spec(datatype, array.ndim), array.shape, text)
    assert array.dtype == back.dtype
    assert array.shape == back.shape
    assert np.array_equal(array, back)


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), max_size=8))
def test_bfloat16_comes_back_the_same(values: list[float]) -> None:
    """BF16 has no counterpart of its own in numpy and still survives."""
    array = np.array(values, DTYPES["BF16"])
    back = json_tensor.decode(spec("BF16"), array.shape, msgspec.json.encode(json_tensor.encode(spec("BF16"), array)))
    assert array.dtype == back.dtype
    assert np.array_equal(array, back)


@given(items=st.lists(st.text(), min_size=2, max_size=8).filter(lambda items: len(items) % 2 == 0), nested=st.booleans())
def test_text_comes_back_the_same(items: list[str], *, nested: bool) -> None:
    """BYTES are the UTF-8 of JSON strings, commas and brackets in them included."""
    shape = (2, len(items) // 2)
    value: Any = [items[: shape[1]], items[shape[1] :]] if nested else items
    back = json_tensor.decode(spec("BYTES", 2), shape, msgspec.json.encode(value))
    assert shape == back.shape
    assert [item.encode() for item in items] == back.ravel().tolist()
    assert items == json_tensor.encode(spec("BYTES", 2), back)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=12), st.data())
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(value: object, data: st.DataObject) -> None:
    """Whatever JSON a client sends as data gives a tensor of the shape and type asked for, or `BadInputError`."""
    try:
        text = msgspec.json.encode(value)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return
    shape = data.draw(SHAPES)
    wanted = spec(data.draw(st.sampled_from(sorted(DTYPES))), len(shape))
    try:
        array = json_tensor.decode(wanted, shape, text)
    except BadInputError:
        return
    assert (shape, wanted.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("INT8", (1,), b"[128]"),
        ("INT8", (1,), b"[-129]"),
        ("UINT8", (1,), b"[-1]"),
        ("UINT64", (1,), b"[18446744073709551616]"),
        ("INT64", (1,), b"[9223372036854775808]"),
        ("INT32", (1,), b"[1.5]"),
        ("INT32", (1,), b"[true]"),
        ("INT32", (1,), b'["1"]'),
        ("INT32", (1,), b"[" + b"9" * 5000 + b"]"),
        ("BOOL", (1,), b"[1]"),
        ("BOOL", (1,), b'["true"]'),
        ("BYTES", (1,), b"[1]"),
        ("BYTES", (1,), b'["\xff"]'),
        ("BYTES", (1,), b'["\\ud800"]'),
        ("BYTES", (2,), b'["a,b"]'),
        ("FP32", (1,), b'["1"]'),
        ("FP32", (1,), b"[null]"),
        ("FP32", (1,), b"[true]"),
        ("FP32", (1,), b"[1e39]"),
        ("FP16", (1,), b"[65520]"),
        ("BF16", (1,), b"[3.4e38]"),
        ("BF16", (1,), b"[1e39]"),
        ("FP64", (1,), b"[1e999]"),
        ("FP64", (1,), b"[NaN]"),
        ("FP64", (1,), b"[Infinity]"),
        ("FP32", (1,), b"[]"),
        ("FP32", (1,), b"1"),
        ("FP32", (1,), b"{}"),
        ("FP32", (1,), b"[[1]]"),
        ("FP32", (), b"1"),
        ("FP32", (0,), b"[1]"),
        ("FP32", (2, 2), b"[1,2,3]"),
        ("FP32", (2, 2), b"[[1,2],[3]]"),
        ("FP32", (2, 2), b"[[1,2,3],[4]]"),
        ("FP32", (2, 2), b"[[1],[2],[3],[4]]"),
        ("FP32", (2, 2), b"[[1,2],3,4]"),
        ("FP32", (2, 2), b"[1,[2,3],4]"),
        ("BYTES", (2, 2), b'[["a","b","c"],["d"]]'),
        ("FP32", (1,), b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_hostile_data_is_refused(datatype: str, shape: tuple[int, ...], text: bytes) -> None:
    """Numbers out of range, other types, ragged or other nesting and wrong counts are all `BadInputError` naming the input."""
    with pytest.raises(BadInputError, match="'x'"):
        json_tensor.decode(spec(datatype, len(shape)), shape, text)


def test_a_wrong_count_costs_nothing() -> None:
    """Ten million elements for a shape of one are refused by counting, before any is made."""
    text = b"[" + b"1," * 10_000_000 + b"1]"
    before = time.process_time()
    with pytest.raises(BadInputError, match="must have 1 elements for shape \\[1\\], got 10000001"):
        json_tensor.decode(spec("FP32"), (1,), text)
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("datatype", sorted(FLOATS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_has_not_was_wrong_to_ask_for(datatype: str, value: float) -> None:
    """NaN and Infinity in an output name it and the way out; the model has not failed, it was asked for JSON."""
    with pytest.raises(BadInputError, match=r"output 'x' has NaN or Infinity.*binary data"):
        json_tensor.encode(spec(datatype), np.array([1, value], DTYPES[datatype]))


def test_bytes_that_are_no_text_were_wrong_to_ask_for() -> None:
    """An output of bytes that are not UTF-8 is named, with the way out."""
    with pytest.raises(BadInputError, match=r"output 'x' has bytes that are not UTF-8.*binary data"):
        json_tensor.encode(spec("BYTES"), np.array([b"\xff"], object))
