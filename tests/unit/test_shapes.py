"""Which shapes a model runs, and that padding and cutting lose nothing of a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.exits import ConfigurationError
from server.models.shapes import Plan, plan
from server.refusals import BadInputError
from server.scoreboard import MAX_SHAPES
from server.tensors import ANY, TensorSpec

TOKENS = TensorSpec("tokens", "INT64", (ANY, ANY), ("n", "length"))
IMAGE = TensorSpec("image", "FP32", (3, ANY, ANY, ANY), (None, "n", "height", "width"))
WORDS = TensorSpec("words", "BYTES", (ANY, ANY, 2), ("n", "length", None))
LABELS = TensorSpec("labels", "INT64", (ANY, ANY), ("n", "length"))
SCORE = TensorSpec("score", "FP32", (ANY,), ("n",))
FIXED = TensorSpec("x", "FP32", (2, 3), (None, None))


def text_plan(sizes: list[int] | None, lengths: list[int] | None) -> Plan:
    """A plan with a batch, a length that two inputs share, and an output that has both."""
    return plan((TOKENS, WORDS), (LABELS, SCORE), sizes, {} if lengths is None else {"length": lengths})


def text_inputs(batch: int, length: int) -> dict[str, Any]:
    """Inputs of which every element is another."""
    count = batch * length
    words = np.array([b"word %d" % number for number in range(2 * count)], object).reshape(batch, length, 2)
    return {"tokens": np.arange(1, count + 1).reshape(batch, length), "words": words}


some = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(sizes=some, lengths=some, batch=st.integers(1, 9), length=st.integers(1, 9), exact=st.booleans())
def test_round_trip(sizes: list[int], lengths: list[int], batch: int, length: int, exact: bool) -> None:  # noqa: FBT001
    """A request runs in the smallest declared shape that holds it and gets its own back, or the refusal names the limit."""
    made = text_plan(sizes, lengths)
    inputs = text_inputs(batch, length)
    came = made.measure(inputs)
    assert (batch, length) == came
    if batch > max(sizes) or length > max(lengths) or (exact and batch not in sizes):
        with pytest.raises(BadInputError, match=r"^axis '(batch|length)' must be (at most|one of) \d+.*, got \d+$"):
            made.fit(came, exact=exact)
        return

    shape = made.fit(came, exact=exact)
    padded = made.stack([inputs], shape)
    outputs = made.cut({"labels": padded["tokens"] * 10, "score": padded["tokens"].sum(1, dtype=np.float32)}, came)

    assert (min(n for n in sizes if n >= batch), min(n for n in lengths if n >= length)) == shape
    assert shape in made.shapes()
    assert (*shape,) == padded["tokens"].shape
    assert (*shape, 2) == padded["words"].shape
    assert set(padded["words"].ravel()) <= {*inputs["words"].ravel(), b""}
    assert (inputs["words"] == padded["words"][:batch, :length]).all()
    assert padded["tokens"].sum() == inputs["tokens"].sum()
    np.testing.assert_array_equal(outputs["labels"], inputs["tokens"] * 10)
    np.testing.assert_array_equal(outputs["score"], inputs["tokens"].sum(1))


def test_no_copy() -> None:
    """What already has its shape is passed on as it is; an undeclared axis is never padded."""
    inputs = text_inputs(4, 7)
    made = text_plan([4, 8], None)

    padded = made.stack([inputs], made.fit(made.measure(inputs), exact=True))

    assert inputs["tokens"] is padded["tokens"]
    assert inputs["words"] is padded["words"]
    assert (8, 7) == made.fit((5, 7), exact=False)


@pytest.mark.parametrize(
    ("shape", "exact", "message"),
    [
        ((5, 8), False, "axis 'batch' must be at most 4, got 5"),
        ((1, 17), False, "axis 'length' must be at most 16, got 17"),
        ((3, 8), True, "axis 'batch' must be one of 2, 4, got 3"),
        ((9, 8), True, "axis 'batch' must be one of 2, 4, got 9"),
        ((2, 17), True, "axis 'length' must be at most 16, got 17"),
        ((0, 8), False, "axis 'batch' must be at least 1, got 0"),
        ((2, 0), True, "axis 'length' must be at least 1, got 0"),
    ],
)
def test_limits(shape: tuple[int, int], exact: bool, message: str) -> None:  # noqa: FBT001
    """A refusal names the axis, the limit and what came."""
    with pytest.raises(BadInputError, match=f"^{message}$"):
        text_plan([4, 2], [8, 16]).fit(shape, exact=exact)


def test_exact_pads_lengths() -> None:
    """Rows that depend on each other are never added, but each may grow."""
    assert (2, 16) == text_plan([2, 4], [8, 16]).fit((2, 9), exact=True)


def test_measure_disagreement() -> None:
    """Two inputs that differ in an axis that they share are refused by name."""
    inputs = {"tokens": np.zeros((2, 3), np.int64), "words": np.full((2, 4, 2), b"", object)}

    with pytest.raises(BadInputError, match=r"^axis 'length' is 3 in input 'tokens' and 4 in input 'words'$"):
        text_plan([2], [8]).measure(inputs)


@pytest.mark.parametrize(
    ("sizes", "lengths", "shapes"),
    [
        ([2, 1, 2], [16, 8], [(1, 8), (1, 16), (2, 8), (2, 16)]),
        ([3], None, [(3, 1)]),
        (None, [4, 5], [(1, 4), (1, 5)]),
        (None, None, [(1, 1)]),
    ],
)
def test_shapes(sizes: list[int] | None, lengths: list[int] | None, shapes: list[tuple[int, int]]) -> None:
    """What is warmed is every combination of what is declared, once, and 1 where nothing is."""
    assert shapes == text_plan(sizes, lengths).shapes()


def test_fixed_shape() -> None:
    """A model without a free axis has one shape, which is empty, and passes everything through."""
    made = plan([FIXED], [FIXED], None, {})
    inputs = {"x": np.ones((2, 3), np.float32)}

    assert [()] == made.shapes()
    assert "its one shape" == made.describe(())
    assert inputs["x"] is made.stack([inputs], made.fit(made.measure(inputs), exact=False))["x"]
    assert (2, 3) == made.cut(inputs, ())["x"].shape
    assert not made.batched


def test_remembered() -> None:
    """Shapes met cold are warmed as well, as far as they are still shapes that could run, and there is room."""
    made = text_plan([2, 4], None)

    assert [(2, 1), (4, 1), (2, 9), (4, 6)] == made.shapes([(2, 9), (2, 9), (4, 6), (3, 9), (8, 9), (2,), (2, 9, 1), (2, 1)])
    assert [(2, 1), (4, 1)] == made.shapes([(2, 1)])
    assert MAX_SHAPES == len(made.shapes((2, length) for length in range(1, 1000)))
    assert {(2, 1), (4, 1)} <= set(made.shapes((2, length) for length in range(1000, 1, -1)))


@pytest.mark.parametrize(
    ("spec", "sizes", "axes", "message"),
    [
        (FIXED, [1], {}, "batch_sizes needs a free leading axis, that of input 'x' is 2"),
        (TensorSpec("x", "FP32", (), ()), [1], {}, "batch_sizes needs a free leading axis, that of input 'x' is absent"),
        (IMAGE, [1], {}, "batch_sizes needs a free leading axis, that of input 'image' is 3"),
        (FIXED, None, {"n": [1]}, "axis 'n' is declared, the model's free axes are none"),
        (IMAGE, None, {"hight": [1]}, "axis 'hight' is declared, the model's free axes are 'n', 'height', 'width'"),
        (
            TOKENS,
            list(range(1, 10)),
            {"length": range(1, 9)},
            f"the model has 72 declared shapes, at most {MAX_SHAPES} can be served",
        ),
        (TensorSpec("x", "FP32", (ANY,) * 9, tuple("abcdefghi")), None, {}, "the model has 9 free axes, at most 8 can be served"),
    ],
)
def test_plan_errors(spec: TensorSpec, sizes: list[int] | None, axes: dict[str, list[int]], message: str) -> None:
    """A declaration that does not fit the model is refused with the axis and the bound."""
    with pytest.raises(ConfigurationError, match=f"^{message}$"):
        plan([spec], [], sizes, axes)


def test_output_must_be_batched() -> None:
    """A model whose answers have no row per row of the input cannot be batched."""
    with pytest.raises(ConfigurationError, match="that of output 'x' is 2"):
        plan([TOKENS], [FIXED], [1, 2], {})


def test_many_combinations_are_counted_not_made() -> None:
    """A declaration of very many shapes is refused at once."""
    spec = TensorSpec("x", "FP32", (ANY,) * 8, tuple("abcdefgh"))

    with pytest.raises(ConfigurationError, match="declared shapes"):
        plan([spec], [], None, {axis: range(1, 65) for axis in "abcdefgh"})


def test_fills() -> None:
    """An input that has a fill of its own is filled up with that, in every direction, and the others as ever."""
    made = replace(text_plan([2, 4], [8, 16]), fills={"tokens": 7})
    inputs = text_inputs(3, 5)

    padded = made.stack([inputs], (4, 8))

    assert (padded["tokens"][:3, :5] == inputs["tokens"]).all()
    assert {7} == {*padded["tokens"][3:].ravel().tolist(), *padded["tokens"][:, 5:].ravel().tolist()}
    assert padded["tokens"].dtype == inputs["tokens"].dtype
    assert {b""} == {*padded["words"][3:].ravel(), *padded["words"][:, 5:].ravel()}


@pytest.mark.parametrize("own", ["batch", "rows"])
def test_axis_of_the_same_name(own: str) -> None:
    """Whatever a model calls its axes, only the leading one of batch_sizes is the batch: the others are their own."""
    spec = TensorSpec("x", "FP32", (ANY, ANY), ("n", own))
    try:
        made = plan([spec], [spec], [1, 4], {})
    except ConfigurationError as refused:
        assert own in str(refused)  # noqa: PT017 - a refusal by name is right as well
    else:
        assert (2, 3) == made.measure({"x": np.zeros((2, 3), np.float32)})
        assert (4, 3) == made.fit((2, 3), exact=False)
        assert made.batched
    alone = plan([spec], [spec], None, {})
    assert not alone.batched
    assert (2, 3) == alone.fit((2, 3), exact=False)
