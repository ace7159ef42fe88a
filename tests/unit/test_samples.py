"""What a model is run on before any client does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from server.models.operator import OperatorPython
from server.models.shapes import BATCH
from server.tensors import ANY, DTYPES, FLOATS, TensorSpec
from server.warmup import samples
from tests.unit.fakes import model, rows


def sample(folder: Path, name: str, x: list[list[float]]) -> str:
    """Write a golden sample beside the version's folder; give its name."""
    (folder / name).write_text(json.dumps({"inputs": {"x": x}, "outputs": {"y": x}}), encoding="utf-8")
    return name


@pytest.mark.parametrize("datatype", DTYPES)
def test_made_up(datatype: str) -> None:
    """Every datatype is made in the shape asked for, the same at every call, and harmless."""
    made = model(inputs=(rows("x", datatype),))

    first, second = (samples.inputs(made, (4,))["x"] for _ in range(2))

    assert (DTYPES[datatype], (4, 3)) == (first.dtype, first.shape)
    assert (first == second).all()
    if datatype == "BYTES":
        assert all(isinstance(item, bytes) and item.decode() for item in first.ravel())
        assert 12 == len(set(first.ravel()))
    elif datatype in FLOATS:
        assert 0 <= first.min() <= first.max() <= 1
        assert 4 == len({row.tobytes() for row in first})
    else:
        assert set(first.ravel().tolist()) <= {0, 1}


def test_shared_axes() -> None:
    """Inputs that share an axis get one length for it; an axis of the operator's own, which the model does not know, gets 1."""
    tokens, mask = (TensorSpec(name, "INT64", (ANY, ANY), ("n", "length")) for name in ("x", "mask"))
    made = model(inputs=(tokens, mask), axes={"length": [8, 16]})

    assert [(n, length) for n in (1, 2, 4) for length in (8, 16)] == made.shapes()
    assert {"x": (2, 16), "mask": (2, 16)} == {name: array.shape for name, array in samples.inputs(made, (2, 16)).items()}

    texts = model(python=OperatorPython(preprocess=lambda inputs: inputs), inputs=(rows("x"),))
    texts.inputs = (TensorSpec("text", "BYTES", (ANY, ANY), (BATCH, "text.1")),)
    assert (4, 1) == samples.inputs(texts, (4,))["text"].shape


def test_golden_rows_in_turn(tmp_path: Path) -> None:
    """Rows are those of the golden samples, over and over."""
    names = [sample(tmp_path, "a.json", [[1, 1, 1], [2, 2, 2]]), sample(tmp_path, "b.json", [[3, 3, 3]])]
    made = model(folder=tmp_path / "1", golden=names)

    assert [1, 2, 3, 1] == samples.inputs(made, (4,))["x"][:, 0].tolist()
    assert [1] == samples.inputs(made, (1,))["x"][:, 0].tolist()
    assert 4 == len({row.tobytes() for row in samples.made_up(made, (4,))["x"]})


def test_golden_of_another_shape(tmp_path: Path) -> None:
    """Where an axis is not the batch, its length is made up; a fixed shape takes the first sample as it is."""
    names = [sample(tmp_path, "a.json", [[1, 2]])]
    spec = TensorSpec("x", "FP32", (ANY, ANY), ("n", "length"))
    outputs = (TensorSpec("y", "FP32", (ANY, ANY), ("n", "length")),)
    free = model(inputs=(spec,), outputs=outputs, folder=tmp_path / "1", golden=names, axes={"length": [4]})
    assert (2, 4) == samples.inputs(free, (2, 4))["x"].shape

    undeclared = TensorSpec("x", "FP32", (1, ANY), (None, BATCH))
    named = model(inputs=(undeclared,), outputs=(undeclared,), batch_sizes=None)
    named.golden = free.golden
    assert (1, 5) == samples.inputs(named, (5,))["x"].shape

    still = TensorSpec("x", "FP32", (1, 2), (None, None))
    fixed = model(
        inputs=(still,),
        outputs=(TensorSpec("y", "FP32", (1, 2), (None, None)),),
        folder=tmp_path / "1",
        golden=names,
        batch_sizes=None,
    )
    assert np.array_equal([[1, 2]], samples.inputs(fixed, ())["x"])
