"""The whole tensor codec under fuzz: what goes out comes in the same, and nothing that comes in raises but a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.api import inputs, response
from server.api.request import parse
from server.models.model import Model
from server.refusals import BadInputError
from server.tensors import ANY, DTYPES, FLOATS, Array, TensorSpec
from tests.unit.fakes import model

EXAMPLES = 400


def tensor(name: str, datatype: str, rank: int) -> TensorSpec:
    """A tensor whose axes are all free."""
    return TensorSpec(name, datatype, (ANY,) * rank, tuple(f"axis {index}" for index in range(rank)))


MODELS = {
    (datatype, rank): model(
        inputs=(tensor("a", datatype, rank), tensor("b", "INT16", 1)),
        outputs=(tensor("a", datatype, rank), tensor("b", "INT16", 1)),
    )
    for datatype in DTYPES
    for rank in (1, 2, 3)
}
LONE = {datatype: model(inputs=(tensor("a", datatype, 1),), outputs=(tensor("a", datatype, 1),)) for datatype in DTYPES}


def arrays(datatype: str, rank: int, *, as_json: bool) -> st.SearchStrategy[Array]:
    """Arrays of every content that the way out can hold, contiguous or not."""
    shape = hnp.array_shapes(min_dims=rank, max_dims=rank, min_side=1, max_side=4)
    if datatype == "BYTES":
        items: st.SearchStrategy[Any] = st.text(max_size=5).map(str.encode) if as_json else st.binary(max_size=5)
        made = hnp.arrays(object, shape, elements=items, fill=st.nothing())
    else:
        raw = shape.flatmap(lambda sides: hnp.arrays(np.uint8, (*sides, DTYPES[datatype].itemsize)))
        if datatype == "BOOL":
            raw = raw.map(lambda octets: octets & 1)
        made = raw.map(lambda octets: octets.view(DTYPES[datatype])[..., 0])
        if as_json and datatype in FLOATS:
            made = made.map(_finite)
    return st.tuples(made, st.booleans()).map(lambda pair: pair[0][::-1] if pair[1] else pair[0])


def _finite(array: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(array), array, array.dtype.type(1))


def same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same bit for bit, NaN payloads and the sign of zero included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


def written(served: Model, tensors: Mapping[str, Array], *, binary: bool) -> tuple[bytes, int]:
    """An answer of `served` turned into the request that sends its outputs back, and the length of its JSON."""
    content, length = response.write(served, "7", response.everything(served, binary=binary), tensors)
    answer = msgspec.json.decode(content[:length])
    assert (served.name, "7") == (answer["model_name"], answer["id"])
    text = msgspec.json.encode({"inputs": answer["outputs"]})
    return text + (b"" if length is None else content[length:]), len(text)


def read(served: Model, content: bytes, length: int) -> dict[str, Array]:
    """What a request says, as the app reads it: without a copy, at whatever place of a larger piece of memory."""
    view = memoryview(b"?" + content)[1:]
    request = parse(view[:length])
    response.wanted(served, request)
    return inputs.read(inputs.describe(served, request), view[length:])


@given(data=st.data(), binary=st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_goes_out_comes_in_the_same(data: st.DataObject, *, binary: bool) -> None:
    """Two tensors of any datatype, rank and content survive the way out and in, as bytes and as JSON."""
    datatype, rank = data.draw(st.sampled_from(sorted(MODELS)))
    served = MODELS[datatype, rank]
    tensors = {
        "a": data.draw(arrays(datatype, rank, as_json=not binary)),
        "b": data.draw(arrays("INT16", 1, as_json=not binary)),
    }
    back = read(served, *written(served, tensors, binary=binary))
    assert tensors.keys() == back.keys()
    assert all(same(tensors[name], back[name]) for name in tensors)


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_mutated_request_is_read_or_refused(data: st.DataObject) -> None:
    """A request with bytes cut, doubled, flipped or put in gives tensors as declared, or `BadInputError` and nothing else."""
    datatype, rank = data.draw(st.sampled_from(sorted(MODELS)))
    served, binary = MODELS[datatype, rank], data.draw(st.booleans())
    tensors = {
        name: data.draw(arrays(kind, r, as_json=not binary)) for name, kind, r in (("a", datatype, rank), ("b", "INT16", 1))
    }
    content, length = written(served, tensors, binary=binary)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 4, len(content))))
        put = data.draw(
            st.binary(max_size=3)
            | st.sampled_from(
                [b"", content[start:end] * 2, b"[", b"]", b",", b"-", b"0", b"9" * 20, b"1e9", b"1e999", b"null", b'"']
            )
        )
        content = content[:start] + put + content[end:]
    for place in {length, data.draw(st.integers(0, len(content)))}:
        try:
            found = read(served, content, min(place, len(content)))
        except BadInputError:
            continue
        for spec in served.inputs:
            assert spec.dtype == found[spec.name].dtype
            assert len(spec.shape) == found[spec.name].ndim


@given(content=st.binary(max_size=200), length=st.integers(0, 200), key=st.sampled_from(sorted(MODELS)))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes, length: int, key: tuple[str, int]) -> None:
    """Bytes that were never a request raise `BadInputError` and nothing else."""
    with pytest.raises(BadInputError):
        read(MODELS[key], content, min(length, len(content)))


@given(content=st.binary(max_size=64), datatype=st.sampled_from(sorted(DTYPES)))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_lone_bytes_are_read_or_refused(content: bytes, datatype: str) -> None:
    """Bytes without JSON are the tensor that they make, bit for bit, or `BadInputError`."""
    served = LONE[datatype]
    try:
        found = inputs.read_lone(served, memoryview(b"?" + content)[1:])
    except BadInputError:
        return
    sent, _ = response.write(served, None, response.everything(served, binary=True), found)
    prefix = len(content).to_bytes(4, "little") if datatype == "BYTES" else b""
    assert sent.endswith(prefix + content)
