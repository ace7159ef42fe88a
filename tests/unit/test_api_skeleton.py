"""Requests whose lists are read apart from the rest: the same comes of them as if they were read whole."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api import inputs, skeleton
from server.api.request import parse
from server.models.model import Model
from server.refusals import BadInputError
from server.tensors import ANY, TensorSpec

SPECS = [TensorSpec(name, kind, (ANY,), ("n",)) for name, kind in (("x", "FP32"), ("y", "INT64"), ("s", "BYTES"))]
MODELS = [cast("Model", SimpleNamespace(name="m", inputs=tuple(SPECS[:count]))) for count in (1, 2, 3)]


def one(name: str = "x", kind: str = "FP32", data: Any = None, **more: Any) -> dict[str, Any]:
    """An input."""
    data = [1.5, 2, 3] if data is None else data
    return {"name": name, "datatype": kind, "shape": [len(data)], "data": data, **more}


def whole(**more: Any) -> dict[str, Any]:
    """A request with all three inputs."""
    return {"inputs": [one(), one("y", "INT64", [4, 5]), one("s", "BYTES", ["a", "b"])], **more}


BOTH_WAYS = json.dumps(
    {"inputs": [one(), one("y", "INT64", [4, 5]), one("s", "BYTES", ["a"], parameters={"binary_data_size": 0})]}
)
NUMBERS = json.dumps({"inputs": [one(), one("y", "INT64", [4, 5])]})
CASES = [
    json.dumps(whole()),
    NUMBERS,
    BOTH_WAYS,
    NUMBERS.replace("[4, 5]", "[[4], [5]]"),
    NUMBERS.replace("[4, 5]", "1"),
    NUMBERS.replace("[4, 5]", "0"),
    NUMBERS.replace("[1.5, 2, 3]", "1").replace("[4, 5]", "0"),
    NUMBERS.replace("[4, 5]", "[4, , 5]"),
    NUMBERS.replace("[4, 5]", '["]", 5]'),
    NUMBERS.replace("[4, 5]", "[{}]"),
    NUMBERS.replace("[4, 5]", "[4, 5"),
    NUMBERS.replace("[4, 5]", "[4, 5]]"),
    NUMBERS.replace('"data": [4, 5]', '"data": [4, 5], "data": [6, 7]'),
    NUMBERS.replace('"data": [4, 5]', '"d\\u0061ta": [4, 5]'),
    NUMBERS.replace('"data": [4, 5]', '"my\\"data": [9], "data": [4, 5]'),
    NUMBERS.replace('"data": [4, 5]', '"\\\\"data": [9], "data": [4, 5]'),
    json.dumps(whole(id='"data": [1]')),
    json.dumps(whole(data=[1, 2])),
    json.dumps(whole(parameters={"data": [1, 2]})),
    json.dumps({"data": [1, 2], "inputs": [one()]}),
    json.dumps({"inputs": [one(parameters={"data": [1]}), one("y", "INT64", [4, 5])]}),
    '{"data": [0], "inputs": []}',
    json.dumps({"inputs": [one(data=[0], parameters={"data": [0]})]}).replace('"data": [0]', '"d\\u0061ta": 0', 1),
    json.dumps({"inputs": [one(data=[0], parameters={"data": [0]})]}).replace('"data": [0]', '"d\\u0061ta": [0]', 1),
    "[1]",
    "",
]
PIECES = ["", '"', "\\", "[", "]", ",", "0", '"data":', '"data": [1]', "{", "}"]


def outcome(text: bytes, model: Model) -> object:
    """What is read of a request; `None` for what is refused, since the words may be those of the list or of the whole."""
    try:
        request = parse(text)
        tensors = inputs.read(inputs.describe(model, request), memoryview(b"xx"))
    except BadInputError:
        return None
    return request.id, request.parameters, request.outputs, {name: array.tolist() for name, array in tensors.items()}


def both(text: bytes) -> list[list[object]]:
    """What each model reads with the lists apart, and as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for long in (0, len(text) + 1):
            patch.setattr(skeleton, "LONG", long)
            found.append([outcome(text, model) for model in MODELS])
        return found


@pytest.mark.parametrize("text", CASES)
def test_the_same(text: str) -> None:
    """Lists of every kind, at every place, twice, escaped, nested, broken."""
    apart, together = both(text.encode())

    assert together == apart


@given(st.data())
@settings(max_examples=2000, deadline=None)
def test_mutants(data: st.DataObject) -> None:
    """The same for requests with pieces cut out, doubled, put in."""
    text = data.draw(st.sampled_from(CASES))
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = min(begin + data.draw(st.integers(0, 8)), len(text))
        piece = data.draw(
            st.sampled_from(["", '"', "\\", "[", "]", ",", "0", '"data":', '"data": [1]', "{", "}", text[begin:end] * 2])
        )
        text = text[:begin] + piece + text[end:]
    apart, together = both(text.encode())

    assert together == apart


def test_taken_out() -> None:
    """The lists of a plain request are taken out, those of one with strings in them are not."""
    request = NUMBERS.encode()
    bare, lists = skeleton.split(request) or (b"", [])

    assert [b"[1.5, 2, 3]", b"[4, 5]"] == lists
    assert request.replace(lists[0], skeleton.place(0)).replace(lists[1], skeleton.place(1)) == bare
    assert skeleton.split(json.dumps(whole()).encode()) is None
