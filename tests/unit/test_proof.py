"""The proof: golden samples, a row alone and in a batch, several threads."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.exits import ModelError
from server.models.model import Model
from server.tensors import Array, Tensors
from server.warmup import proof
from tests.unit.fakes import FakeSession, echo, model, rows


def with_sample(folder: Path, x: Any, y: Any, run: Any = echo, datatype: str = "FP32", **toml: Any) -> Model:
    """A model with one golden sample."""
    (folder / "one.json").write_text(json.dumps({"inputs": {"x": x}, "outputs": {"y": y}}), encoding="utf-8")
    made = (rows("x", datatype),), (rows("y", datatype),)
    return model(run, *made, folder=folder / "1", golden=["one.json"], **toml)


def silent(_: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    ("y", "toml"),
    [
        ([[1, 2, 3]], {}),
        ([[1.0005, 2, 3]], {}),
        ([[1.4, 2, 3]], {"atol": 0.5}),
        ([[1.4, 2, 3]], {"rtol": 0.5}),
    ],
)
def test_golden_right(tmp_path: Path, y: Any, toml: dict[str, Any]) -> None:
    """An answer within the tolerances of `model.toml` is right."""
    proof.golden(with_sample(tmp_path, [[1, 2, 3]], y, **toml))


@pytest.mark.parametrize(
    ("x", "y", "datatype", "part"),
    [
        ([[1, 2, 3]], [[1, 2, 3.5]], "FP32", "output 'y' at [0, 2] must be 3.5, is 3.0, rtol is 0.001 and atol 0.0001"),
        ([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]], "FP32", "output 'y' must have shape [2, 3], has [1, 3]"),
        ([[1, 2, 3]], [[1, 2, 4]], "INT64", "output 'y' at [0, 2] must be"),
        ([["a", "b", "c"]], [["a", "x", "c"]], "BYTES", "output 'y' at [0, 1] must be b'x', is b'b'"),
        ([[1, 0, 3]], [[1, float("nan"), 3]], "FP64", "output 'y'"),
        ([[1, 0, 3]], [[float("nan")] * 3], "FP64", "output 'y'"),
        ([[float("inf"), 0, 3]], [[float("-inf"), 0, 3]], "FP64", "output 'y'"),
        ([[1, 2, 3]] * 5, [[1, 2, 3]] * 4 + [[1, 2, 4]], "FP32", "output 'y' at [4, 2] must be 4.0, is 3.0"),
    ],
)
def test_golden_wrong(tmp_path: Path, x: Any, y: Any, datatype: str, part: str) -> None:
    """An answer that is not the known one is refused by sample, output and place; a sample that can't run, too."""
    made = with_sample(tmp_path, x, y, datatype=datatype)

    with pytest.raises(ModelError) as refused:
        proof.prove(made, 1, silent)

    assert str(refused.value).startswith("model m/1: golden sample one.json: ")
    assert part in str(refused.value)


def test_golden_that_does_not_run(tmp_path: Path) -> None:
    """A sample over a limit of the model is refused by that limit."""
    made = with_sample(tmp_path, [[1, 2, 3]] * 5, [[1, 2, 3]] * 5, batch_sizes=None, axes={"n": [2, 4]})

    with pytest.raises(ModelError, match=r"golden sample one\.json: .*axis 'n' must be at most 4, got 5"):
        proof.golden(made)


def test_golden_of_many_rows(tmp_path: Path) -> None:
    """A sample may have more rows than the largest batch: it runs in parts, as a request does."""
    y = [[row, 2 * row, 3 * row] for row in range(11)]
    made = with_sample(tmp_path, y, y)

    proof.golden(made)

    assert isinstance(made.session, FakeSession)
    assert [4, 4, 4] == [len(run["x"]) for run in made.session.runs]


def less_mean(inputs: Tensors) -> dict[str, Array]:
    """Rows that depend on the others in their batch."""
    return {"y": inputs["x"] - inputs["x"].mean(0, keepdims=True)}


def by_place(inputs: Tensors) -> dict[str, Array]:
    """Rows that depend on their place in the batch."""
    return {"y": inputs["x"] + np.arange(len(inputs["x"]), dtype=np.float32)[:, None]}


@pytest.mark.parametrize(("run", "row"), [(less_mean, "row 0 of 4"), (by_place, "row 1 of 4")])
def test_rows_differ(run: Any, row: str) -> None:
    """A model whose rows depend on each other is told from one whose rows do not, and a worker does not go on with it."""
    assert not proof.rows_differ(model())
    assert proof.rows_differ(model(run)).startswith(f"{row} is another one alone: output 'y' at [0, 0] must be ")
    with pytest.raises(ModelError, match=f"^model m/1: {row} .*, yet the trial found its rows independent$"):
        proof.prove(model(run), 1, silent)


def gives(function: Any) -> Any:
    """A model that gives `function` of its input."""
    return lambda inputs: {"y": np.asarray(function(inputs["x"]), np.float32)}


def from_four_rows(x: Array) -> Array:
    """What comes in, but with 0.25 more in batches of four."""
    return x + (0.25 if len(x) == 4 else 0)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda x: x, 0),
        (lambda x: x + 0.5, 0.5),
        (lambda x: x - 2, 2),
        (from_four_rows, 0.25),
        (lambda x: x + np.array([0, 3, -7]), 7),
    ],
)
def test_largest_difference(other: Any, difference: float) -> None:
    """The difference is the largest of any element of any row in any shape, whatever its sign."""
    assert difference == pytest.approx(proof.largest_difference(model(gives(other)), model(gives(lambda x: x))), abs=1e-6)


def test_largest_difference_of_golden_samples(tmp_path: Path) -> None:
    """Golden samples are compared too: they may be where the numbers are large."""
    made = with_sample(tmp_path, [[1000, 2, 3]], [[1000, 2, 3]], gives(lambda x: x * 1.01))

    assert 10 == pytest.approx(proof.largest_difference(made, model(gives(lambda x: x))), rel=0.01)


def test_largest_difference_beside_infinity() -> None:
    """An infinity that both give, as masks are, hides no difference beside it."""
    mask = np.array([-np.inf, 0, 0], np.float32)

    found = proof.largest_difference(model(gives(lambda x: x + mask + 4)), model(gives(lambda x: x + mask)))

    assert 4 == pytest.approx(found)


def test_difference_to_infinity_is_infinite() -> None:
    """A number that overflows in the smaller type is as far off as a number can be."""
    overflowing = model(gives(lambda x: np.full(x.shape, np.inf)))

    assert np.inf == proof.largest_difference(overflowing, model())


def test_integers_have_no_difference() -> None:
    """What is no float is not measured: a class may be another one, by how much says nothing."""
    outputs = (rows("y", "INT64"),)
    one = model(lambda inputs: {"y": inputs["x"].astype(np.int64)}, outputs=outputs)
    other = model(lambda inputs: {"y": inputs["x"].astype(np.int64) + 5}, outputs=outputs)

    assert 0 == proof.largest_difference(one, other)


def test_rows_that_are_never_mixed() -> None:
    """A model that is not batched need not have rows that are independent."""
    proof.prove(model(less_mean, batched=False), 1, silent)


def test_row_alone_is_padded_as_a_request_is() -> None:
    """Where no batch of one is declared, a row alone runs padded; one whose answer that changes is found."""
    assert not proof.rows_differ(model(batch_sizes=[2, 4]))
    assert proof.rows_differ(model(lambda inputs: {"y": inputs["x"] * len(inputs["x"])}, batch_sizes=[2, 4]))


def test_several_threads() -> None:
    """The model is entered by so many threads at once, and answers each as it answers one."""
    here = threading.Barrier(4)
    alone = iter([True])

    def run(inputs: Tensors) -> dict[str, Array]:
        if not next(alone, False):
            here.wait(30)  # breaks unless four are inside at once
        return echo(inputs)

    made = model(run, batched=False)
    proof.prove(made, 4, silent)

    assert isinstance(made.session, FakeSession)
    assert 5 == len(made.session.runs)


def test_threads_get_another_answer() -> None:
    """A model that keeps state between runs is refused."""
    turn = itertools.count()

    with pytest.raises(ModelError, match=r"^model m/1: 3 threads at once get another answer than one: output 'y' at "):
        proof.prove(model(lambda inputs: {"y": inputs["x"] + next(turn)}, batched=False), 3, silent)


def only_here(message: str) -> Callable[[Tensors], dict[str, Array]]:
    """A model's run that raises `message` in any other thread than this one."""
    main = threading.current_thread()

    def run(inputs: Tensors) -> dict[str, Array]:
        if threading.current_thread() is not main:
            raise RuntimeError(message)
        return echo(inputs)

    return run


def test_threads_raise() -> None:
    """A model that raises once threads enter it is refused by its name."""
    run = only_here("not thread-safe")

    with pytest.raises(ModelError, match=r"^model m/1: 2 threads at once.* RuntimeError: not thread-safe$"):
        proof.prove(model(run, batched=False), 2, silent)


def test_bound_to_thread() -> None:
    """A model that another thread may not run is found out, with what it raises; one that does not care is not."""
    run = only_here("made in another thread")

    assert not proof.bound_to_thread(model())
    assert proof.bound_to_thread(model(run)) == "model m/1: in another thread: raised RuntimeError: made in another thread"
