"""Golden samples: what is read, typed as the model has it, and what is refused by the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from server.exits import ConfigurationError
from server.models import golden
from server.models.golden import Golden
from server.tensors import DTYPES, TensorSpec
from tests.unit.fakes import rows, save


def write(folder: Path, inputs: Any, outputs: Any) -> Path:
    """Write a sample as JSON."""
    path = folder / "sample.json"
    path.write_text(json.dumps({"inputs": inputs, "outputs": outputs}), encoding="utf-8")
    return path


def load(path: Path, datatype: str = "FP32", width: int = 2) -> Golden:
    """Read a sample of a model with one input and two outputs of one datatype."""
    return golden.load(path, [rows("x", datatype, width)], [rows("y", datatype, width), rows("z", datatype, width)])


@pytest.mark.parametrize("datatype", DTYPES)
def test_json(tmp_path: Path, datatype: str) -> None:
    """Nested lists become the datatype that the model has, and only the outputs that are named are known."""
    special: dict[str, list[list[Any]]] = {"BYTES": [["a", "\N{SNOWMAN}"]], "BOOL": [[True, False]]}
    given = special.get(datatype, [[1, 0]])

    sample = load(write(tmp_path, {"x": given}, {"z": given}), datatype)

    assert DTYPES[datatype] == sample.inputs["x"].dtype
    assert ["z"] == list(sample.outputs)
    expected = [[b"a", "\N{SNOWMAN}".encode()]] if datatype == "BYTES" else given
    assert (np.array(expected, DTYPES[datatype]) == sample.inputs["x"]).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz(tmp_path: Path, order: Any) -> None:
    """Arrays keep their values in whichever order they lie, texts become bytes."""
    texts = np.array([["a", "bb"], ["ccc", "\N{SNOWMAN}"]], order=order)
    numbers = np.array([[1.5, 2], [3, 4]], np.float32, order=order)
    path = tmp_path / "sample.npz"
    save(path, {"inputs/x": texts, "outputs/y": numbers})

    sample = golden.load(path, [rows("x", "BYTES", 2)], [rows("y", "FP32", 2)])

    assert [[b"a", b"bb"], [b"ccc", "\N{SNOWMAN}".encode()]] == sample.inputs["x"].tolist()
    assert [[1.5, 2], [3, 4]] == sample.outputs["y"].tolist()


def test_scalar_and_bfloat16(tmp_path: Path) -> None:
    """A tensor without axes is a bare number; what bfloat16 has no room for is rounded."""
    spec = TensorSpec("s", "BF16", (), ())

    sample = golden.load(write(tmp_path, {"s": 1.001}, {"s": 3}), [spec], [spec])

    assert ml_dtypes.bfloat16(1) == sample.inputs["s"]
    assert 3 == sample.outputs["s"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "part"),
    [
        ({}, {"y": [[1, 2]]}, "the model has ['x']"),
        ({"x": [[1, 2]], "w": [[1, 2]]}, {"y": [[1, 2]]}, "has tensors ['w', 'x'], the model has ['x']"),
        ({"x": [[1, 2]]}, {}, "has tensors [], the model has ['y', 'z']"),
        ({"x": [[1, 2]]}, {"q": [[1, 2]]}, "has tensors ['q']"),
        ({"x": [1, 2]}, {"y": [[1, 2]]}, "x must have shape [-1, 2], has [2]"),
        ({"x": [[1, 2], [3]]}, {"y": [[1, 2]]}, ""),
        ({"x": [["one", "two"]]}, {"y": [[1, 2]]}, ""),
        ({"x": [[None, 2]]}, {"y": [[1, 2]]}, ""),
        ({"x": [[1, 2, 3]]}, {"y": [[1, 2]]}, "x must have shape [-1, 2], has [1, 3]"),
        ({"x": [[{}, 2]]}, {"y": [[1, 2]]}, ""),
        ([], {"y": [[1, 2]]}, ""),
        ({"x": [[1, 2]]}, None, ""),
    ],
)
def test_refused(tmp_path: Path, inputs: Any, outputs: Any, part: str) -> None:
    """A sample that does not fit the model is refused by its file, and where that is so, the tensor."""
    path = write(tmp_path, inputs, outputs)

    with pytest.raises(ConfigurationError) as refused:
        load(path)

    assert str(refused.value).startswith(f"{path}: not a golden sample of this model: ")
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "number"), [("INT64", 1.5), ("UINT8", 300), ("UINT8", -1), ("INT8", 1e9), ("BOOL", 2), ("INT32", "7")]
)
def test_not_cast_in_silence(tmp_path: Path, datatype: str, number: Any) -> None:
    """A number that the datatype has not is no sample of this model: it is not turned into another one."""
    path = write(tmp_path, {"x": [[number, 0]]}, {"y": [[0, 0]]})

    with pytest.raises(ConfigurationError, match=str(path)):
        load(path, datatype)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b'{"inputs": {}}', b'{"inputs": {"x": [[1, 2]]}, "outputs": 3}']
)
@pytest.mark.parametrize("name", ["sample.json", "sample.npz"])
def test_other_files(tmp_path: Path, name: str, content: bytes) -> None:
    """A file of another kind is refused by its name."""
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=f"^{path}: not a golden sample"):
        load(path)


def test_pickle_is_not_run(tmp_path: Path) -> None:
    """An array of objects would be a pickle, which is refused unread."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "sample.npz"
    save(path, {"inputs/x": np.array([[Trap(), 1]], object), "outputs/y": np.zeros((1, 2))})

    with pytest.raises(ConfigurationError, match=str(path)):
        load(path)
    assert not (tmp_path / "sprung").exists()
