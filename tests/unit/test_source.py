"""What an engine is told: who declares a model's own tensors, and what of it is new in each place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.engines.engine import Precision
from server.exits import ConfigurationError
from server.models import source as sources
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import ModelToml, TensorTable
from server.models.source import source, spec, text
from server.tensors import ANY, Tensors, TensorSpec


def files(folder: Path, **toml: Any) -> ModelFiles:
    """A version m/1 whose `model.toml` says `toml`."""
    return ModelFiles("m", 1, folder, msgspec.convert(toml, ModelToml))


def pre(_: Tensors) -> Any:
    """An operator's `preprocess`, or `module`."""


def post(_outputs: Tensors, _inputs: Tensors) -> Any:
    """An operator's `postprocess`."""


def table(name: str) -> dict[str, Any]:
    """A tensor as `model.toml` has it."""
    return {"name": name, "datatype": "FP32", "shape": [-1, 3]}


CLIENTS: dict[str, Any] = {"inputs": [table("client")], "outputs": [table("client")]}
OWN: dict[str, Any] = {"model": {"inputs": [table("own")], "outputs": [table("own")]}}


@pytest.mark.parametrize(
    ("toml", "python", "inputs", "outputs"),
    [
        ({}, OperatorPython(), None, None),
        (CLIENTS, OperatorPython(), "client", "client"),
        (CLIENTS, OperatorPython(preprocess=pre), None, "client"),
        (CLIENTS, OperatorPython(postprocess=post), "client", None),
        (CLIENTS, OperatorPython(preprocess=pre, postprocess=post), None, None),
        (CLIENTS, OperatorPython(module=lambda: None), "client", "client"),
        (CLIENTS | {"text": {}}, OperatorPython(), None, "client"),
        (OWN, OperatorPython(), "own", "own"),
        (OWN | CLIENTS, OperatorPython(), "own", "own"),
        (OWN | CLIENTS | {"text": {}}, OperatorPython(preprocess=pre, postprocess=post), "own", "own"),
        ({"inputs": [], "model": {"inputs": []}}, OperatorPython(), None, None),
    ],
)
def test_who_declares(tmp_path: Path, toml: Any, python: OperatorPython, inputs: str | None, outputs: str | None) -> None:
    """What clients see is the model's own where nothing stands between; `[model]` says it in any case."""
    made = source(files(tmp_path, **toml), python)

    for expected, specs in ((inputs, made.inputs), (outputs, made.outputs)):
        assert (expected and [expected]) == (specs and [each.name for each in specs])


def test_what_else_is_said(tmp_path: Path) -> None:
    """The file, the network and the wish to compile come along."""
    made = source(files(tmp_path, file="net/model.pth", torch={"compile": True}), OperatorPython(module=list))

    assert tmp_path / "net/model.pth" == made.path
    assert made.module is list
    assert made.compiled
    assert Precision.FP32 is made.precision
    assert not source(files(tmp_path), OperatorPython()).compiled


@pytest.mark.parametrize("has", [True, False])
def test_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool) -> None:  # noqa: FBT001
    """The precision is that of `model.toml` if the processor has it."""
    monkeypatch.setattr(sources, "available", lambda asked, _gpu: asked if has else Precision.FP32)

    made = source(files(tmp_path, torch={"precision": "bf16"}), OperatorPython())

    assert (Precision.BF16 if has else Precision.FP32) is made.precision


@pytest.mark.parametrize(
    ("shape", "leading", "lengths", "axes"),
    [
        ([], "batch", (), ()),
        ([2, 3], "batch", (2, 3), (None, None)),
        ([-1, 3], None, (ANY, 3), ("x.0", None)),
        ([-1, -1], "batch", (ANY, ANY), ("batch", "x.1")),
        (["rows", "length", 3], None, (ANY, ANY, 3), ("rows", "length", None)),
        (["rows", "length"], "batch", (ANY, ANY), ("batch", "length")),
        ([3, "length"], "batch", (3, ANY), (None, "length")),
        (["n", "n"], None, (ANY, ANY), ("n", "n")),
    ],
)
def test_shapes_by_name(shape: list[int | str], leading: str | None, lengths: Any, axes: Any) -> None:
    """A free axis has the name that it is given, or one of its own; a batch is always called so."""
    made = spec(TensorTable("x", "INT64", shape), leading)

    assert TensorSpec("x", "INT64", lengths, axes) == made


def test_text(tmp_path: Path) -> None:
    """A tokenizer is read only where `[text]` asks for one; what is wrong with it is said with its path."""
    assert text(files(tmp_path)) is None
    (tmp_path / "words.json").write_text("{}", encoding="ascii")

    with pytest.raises(ConfigurationError, match=f"^{tmp_path / 'words.json'}: "):
        text(files(tmp_path, text={"tokenizer": "words.json"}))
