"""torch.export: what a `.pt2` archive says of its tensors, and how it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

from server.engines.catalogue import engine_for
from server.engines.engine import Precision, Rung, Source
from server.engines.torch_export import ENGINE
from server.engines.torch_session import TorchSession
from server.exits import ConfigurationError
from server.refusals import BadInputError
from server.tensors import ANY, TensorSpec
from tests.torch_models import answer, content, put_file

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

ROWS = Dim("rows", min=1, max=64)
LENGTH = Dim("length", min=1, max=32)


class Calls(torch.nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Call `function`."""
        super().__init__()
        self.function = function


class One(Calls):
    """Of one input."""

    def forward(self, x: torch.Tensor) -> Any:
        """Call it."""
        return self.function(x)


class Two(Calls):
    """Of an input by place and one by name."""

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> Any:
        """Call it."""
        return self.function(x, mask)


class Weight(torch.nn.Module):
    """A network with a parameter, a buffer that is saved, one that is not, and a tensor that is neither."""

    shift: torch.Tensor
    turn: torch.Tensor

    def __init__(self) -> None:
        """Four tensors."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("shift", torch.full((3,), 1.0))
        self.register_buffer("turn", torch.arange(3.0), persistent=False)
        self.table = torch.tensor([0.0, 0.0, 0.5])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Use them all."""
        return {"y": x * self.weight + self.shift + self.turn + self.table, "weight": self.weight}


def exported(folder: Path, network: torch.nn.Module, *given: torch.Tensor, free: Any = None, **named: torch.Tensor) -> Path:
    """Write a network as an archive; `free` are the axes that are."""
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(network.eval(), given, named, dynamic_shapes=free), path)
    return path


def tensors(path: Path) -> Any:
    """What an archive says of its inputs and outputs."""
    ENGINE.check(Source(path))
    session = ENGINE.load(Source(path), 1)
    return session.inputs, session.outputs


def test_program(tmp_path: Path) -> None:
    """An archive needs nothing declared: names, types and free axes are its own, and it runs with any number of rows."""
    path = put_file(tmp_path, "model.pt2", content("model.pt2"))
    assert engine_for(path) is ENGINE
    inputs, outputs = tensors(path)
    session = ENGINE.load(Source(path), 1)

    for rows in (1, 5):
        given = np.arange(rows * 3).reshape(rows, 3).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": given})[outputs[0].name], answer(given.tolist()), rtol=1e-5)
    assert [("x", "FP32", (ANY, 3))] == [(spec.name, spec.datatype, spec.shape) for spec in inputs]
    assert [("FP32", (ANY, 2))] == [(spec.datatype, spec.shape) for spec in outputs]
    assert inputs[0].axes[0]
    assert inputs[0].axes == outputs[0].axes


def test_free_axes(tmp_path: Path) -> None:
    """Axes that have one length have one name, in inputs and outputs; a fixed one has none."""
    network = Two(lambda x, mask: {"pooled": (x * mask[..., None]).sum(1), "mask": mask * 2})
    free = {"x": {0: ROWS, 1: LENGTH}, "mask": {0: ROWS, 1: LENGTH}}
    path = exported(tmp_path, network, torch.rand(2, 5, 4), mask=torch.rand(2, 5), free=free)

    (x, mask), (pooled, second) = tensors(path)

    rows, length, fixed = x.axes
    assert (rows, length) == mask.axes == second.axes
    assert (rows, None) == pooled.axes
    assert len({rows, length, None}) == 3
    assert fixed is None
    assert [(ANY, ANY, 4), (ANY, ANY), (ANY, 4), (ANY, ANY)] == [spec.shape for spec in (x, mask, pooled, second)]
    assert ["x", "mask", "pooled", "mask"] == [spec.name for spec in (x, mask, pooled, second)]


def test_by_name(tmp_path: Path) -> None:
    """Arguments that are given by name alone are found by it; a dict of outputs comes by its keys."""
    network = Two(lambda x, mask: {"z": x - mask, "a": x + mask})
    session = ENGINE.load(Source(exported(tmp_path, network, torch.rand(2, 3), mask=torch.rand(2, 3))), 1)

    made = session.run({"mask": np.ones((2, 3), np.float32), "x": np.full((2, 3), 5, np.float32)})

    assert ["x", "mask"] == [spec.name for spec in session.inputs]
    assert (4, 6) == (made["z"][0, 0], made["a"][0, 0])


def test_several_outputs(tmp_path: Path) -> None:
    """A tuple's tensors are called as the graph calls them, each by another name, and come in order."""
    session = ENGINE.load(Source(exported(tmp_path, One(lambda x: (x + 1, x * 2, x + 3)), torch.rand(2, 3))), 1)

    made = session.run({"x": np.ones((2, 3), np.float32)})

    assert 3 == len(made)
    assert [2, 2, 4] == [made[spec.name][0, 0] for spec in session.outputs]


def test_one_tensor_twice(tmp_path: Path) -> None:
    """A program that gives the same tensor twice, or its input, is refused by name, or gives each a name of its own."""
    for number, function in enumerate((lambda x: {"a": x + 1, "b": x}, lambda x: ((y := x + 1), y))):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            session = ENGINE.load(Source(exported(folder, One(function), torch.rand(2, 3))), 1)
        except ConfigurationError as refused:
            assert str(folder) in str(refused)  # noqa: PT017 - either is right
            continue
        made = session.run({"x": np.ones((2, 3), np.float32)})

        names = [spec.name for spec in session.outputs]
        assert 2 == len(set(names)) == len(made)
        assert [2, 1 if number == 0 else 2] == [made[name][0, 0] for name in names]


def test_names_of_our_own(tmp_path: Path) -> None:
    """`model.toml` may declare the tensors again, with names for the axes."""
    path = put_file(tmp_path, "model.pt2", content("model.pt2"))
    own = TensorSpec("x", "FP32", (ANY, 3), ("lines", None))

    session = ENGINE.load(Source(path, inputs=(own,)), 1)

    assert (own,) == session.inputs
    assert 1 == len(session.run({"x": np.ones((1, 3), np.float32)}))


def test_another_order(tmp_path: Path) -> None:
    """Tensors that `model.toml` declares in another order than the program's are found by their names, or refused."""
    path = exported(tmp_path, Difference(), torch.rand(2, 3), torch.rand(2, 3))
    inputs = tuple(TensorSpec(name, "FP32", (2, 3), (None, None)) for name in "ba")
    outputs = tuple(TensorSpec(name, "FP32", (2, 3), (None, None)) for name in ("sum", "difference"))

    try:
        session = ENGINE.load(Source(path, inputs=inputs, outputs=outputs), 1)
    except ConfigurationError as refused:
        assert str(refused).startswith(f"{path}: ")  # noqa: PT017 - either is right
    else:
        made = session.run({"a": np.full((2, 3), 5, np.float32), "b": np.ones((2, 3), np.float32)})
        assert (4, 6) == (made["difference"][0, 0], made["sum"][0, 0])


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "z")])
def test_other_inputs(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Inputs that the program has not, or lacks, are refused at the load, with the file and the names."""
    path = exported(tmp_path, Difference(), torch.rand(2, 3), torch.rand(2, 3))
    inputs = tuple(TensorSpec(name, "FP32", (2, 3), (None, None)) for name in names)

    with pytest.raises(ConfigurationError, match=f"^{path}: .*{names[-1]}"):
        ENGINE.load(Source(path, inputs=inputs), 1)


def test_all_that_it_holds(tmp_path: Path) -> None:
    """Parameters, buffers of both kinds and constants are loaded; a parameter may be an answer."""
    session = ENGINE.load(Source(exported(tmp_path, Weight(), torch.rand(2, 3))), 1)

    made = session.run({"x": np.ones((2, 3), np.float32)})

    assert [[3, 4, 5.5]] * 2 == made["y"].tolist()
    assert [2, 2, 2] == made["weight"].tolist()


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precision(tmp_path: Path, precision: Precision) -> None:
    """A graph runs in half precision, with floats as declared outside."""
    path = put_file(tmp_path, "model.pt2", content("model.pt2"))

    session = ENGINE.load(Source(path, precision=precision), 1)
    came = session.run({"x": np.ones((1, 3), np.float32)})[session.outputs[0].name]

    assert np.float32 == came.dtype
    np.testing.assert_allclose(answer([[1, 1, 1]]), came, atol=0.01)
    assert (answer([[1, 1, 1]]) != came).any()


def test_more_rows_than_it_was_made_for(tmp_path: Path) -> None:
    """A length outside the range that the graph was exported for raises, or is right; it is never answered wrongly."""
    session = ENGINE.load(Source(put_file(tmp_path, "model.pt2", content("model.pt2"))), 1)
    given = np.ones((65, 3), np.float32)

    try:
        came = session.run({"x": given})[session.outputs[0].name]
    except (AssertionError, RuntimeError, BadInputError) as refused:
        assert "64" in str(refused)  # noqa: PT017 - either is right
    else:
        np.testing.assert_allclose(came, answer(given.tolist()), rtol=1e-5)


def test_rungs(tmp_path: Path) -> None:
    """Shared live, else each its own, on any number of threads."""
    for threads in (1, 4):
        assert [(Rung.LIVE, ""), (Rung.PRIVATE, "")] == list(ENGINE.rungs(Source(tmp_path / "model.pt2"), threads))


class Difference(torch.nn.Module):
    """Two inputs by place, two outputs by name."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both ways."""
        return {"difference": a - b, "sum": a + b}


class Nested(torch.nn.Module):
    """Inputs in a list."""

    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Add."""
        return x[0] + x[1]


def test_containers(tmp_path: Path) -> None:
    """Tensors inside of lists inside of what the protocol has no words for are refused by file and side."""
    inputs, outputs = (tmp_path / side for side in ("inputs", "outputs"))
    for folder in (inputs, outputs):
        folder.mkdir()
    torch.export.save(torch.export.export(Nested(), ([torch.rand(2), torch.rand(2)],)), inputs / "model.pt2")
    nested = exported(outputs, One(lambda x: {"a": (x + 1, x + 2)}), torch.rand(2, 3))

    with pytest.raises(ConfigurationError, match=rf"^{inputs}/model\.pt2: an input is a container of tensors"):
        ENGINE.load(Source(inputs / "model.pt2"), 1)
    with pytest.raises(ConfigurationError, match=rf"^{outputs}/model\.pt2: an output is a container of tensors"):
        ENGINE.load(Source(nested), 1)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda x: x.to(torch.complex64), torch.rand(2, 3)),
        (lambda x: x.real, torch.rand(2, 3, dtype=torch.complex64)),
        (lambda x: (x + 1, 3), torch.rand(2, 3)),
        (lambda x: (x + 1, None), torch.rand(2, 3)),
    ],
    ids=["complex out", "complex in", "number out", "nothing out"],
)
def test_types_that_the_protocol_has_not(tmp_path: Path, function: Callable[..., Any], given: torch.Tensor) -> None:
    """What is no tensor of the protocol's is refused by file, with what it is."""
    path = exported(tmp_path, One(function), given)

    with pytest.raises(ConfigurationError, match=f"^{path}: "):
        ENGINE.load(Source(path), 1)


def two_axes(tmp_path: Path, inputs: tuple[TensorSpec, ...] | None) -> TorchSession:
    """A program whose rows and length are free, within bounds, and which answers with one number less in each place."""

    class Cut(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, :2] * 2

    axes = {0: Dim("rows", min=1, max=8), 1: Dim("length", min=2, max=16)}
    program = torch.export.export(Cut().eval(), (torch.rand(2, 4, 3),), dynamic_shapes={"x": axes})
    program.example_inputs = None
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    source = Source(path, inputs=inputs)
    ENGINE.check(source)
    return ENGINE.load(source, 1)


def test_axes_of_outputs_are_those_of_inputs(tmp_path: Path) -> None:
    """Axes that `model.toml` gives names to are called so in the outputs too, so that what padding adds is cut off."""
    session = two_axes(tmp_path, (TensorSpec("x", "FP32", (ANY, ANY, 3), ("x.0", "seq", None)),))

    assert [("x.0", "seq", None)] == [spec.axes for spec in session.outputs]


def test_lengths_that_the_program_does_not_hold_for(tmp_path: Path) -> None:
    """A length outside the bounds that a program was exported with is refused by axis and bounds, not run."""
    session = two_axes(tmp_path, (TensorSpec("x", "FP32", (ANY, ANY, 3), ("x.0", "seq", None)),))
    session.enter(1)

    with pytest.raises(BadInputError, match=r"axis 'seq' of 'x' must be 2 to 16, got 17"):
        session.run({"x": np.ones((1, 17, 3), np.float32)})
    assert (8, 16, 2) == session.run({"x": np.ones((8, 16, 3), np.float32)})[session.outputs[0].name].shape


@pytest.mark.parametrize("shape", [(ANY, ANY), (ANY, ANY, 4), (ANY, ANY, ANY)])
def test_shapes_that_are_not_the_programs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An input that `model.toml` declares with another number of axes, or another fixed length, is refused by both shapes."""
    axes = tuple(f"x.{place}" if length == ANY else None for place, length in enumerate(shape))
    with pytest.raises(ConfigurationError, match=r"'x' is FP32 \[-1, -1, 3\], model.toml has FP32"):
        two_axes(tmp_path, (TensorSpec("x", "FP32", shape, axes),))
