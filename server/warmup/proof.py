"""Prove that a warm model answers rightly: golden samples, a row alone against a row in a batch, several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from server.exits import ModelError
from server.models.model import Model
from server.models.shapes import BATCH
from server.tensors import FLOATS, Array, Tensors, TensorSpec
from server.warmup import samples
from server.warmup.polite import FULL_SPEED, Pace
from server.warmup.warm import infer


def prove(model: Model, threads: int, say: Callable[[str], None], pace: Pace = FULL_SPEED, *, joins: bool = False) -> None:
    """Check what `model` answers; raise `ModelError` naming the model and the check that failed.

    `threads`: from how many threads of this process the model is entered. Where a worker `joins` others that serve the same,
    they have shown what is true of the model and not of a process: that rows do not depend on each other.
    """
    say(f"model {model.key}: golden samples")
    golden(model, pace)
    if model.batched and model.plan.batched and not joins:
        say(f"model {model.key}: a row alone against the row in a batch")
        if difference := rows_differ(model, pace):
            message = f"model {model.key}: {difference}, yet the trial found its rows independent"
            raise ModelError(message)
    if threads > 1:
        say(f"model {model.key}: {threads} threads")
        several_threads(model, threads)


def golden(model: Model, pace: Pace = FULL_SPEED) -> None:
    """Raise `ModelError` naming the sample unless each golden sample gives its known outputs."""
    for sample in model.golden:
        where = f"model {model.key}: golden sample {sample.path.name}"
        difference = _differ(model, sample.outputs, pace.aside(partial(infer, model, sample.inputs, where)))
        if difference:
            message = f"{where}: {difference}"
            raise ModelError(message)


def rows_differ(model: Model, pace: Pace = FULL_SPEED) -> str:
    """Say how a row alone differs from the same row in the largest batch; empty if none does."""
    largest = model.plan.lengths[BATCH][-1]
    rest = tuple(model.plan.lengths.get(axis, (1,))[0] for axis in model.plan.axes[1:])
    # Made-up rows differ from one another, golden ones may not; but the operator's Python is only sure to take golden ones.
    batch = samples.inputs(model, (largest, *rest)) if model.python.preprocess else samples.mixed(model, largest)
    where = f"model {model.key}: a row alone against the row in a batch"
    together = pace.aside(partial(infer, model, batch, where))
    for row in range(largest):
        alone = pace.aside(partial(infer, model, {name: array[row : row + 1] for name, array in batch.items()}, where))
        difference = _differ(model, _row(together, row, alone), alone)
        if difference:
            return f"row {row} of {largest} is another one alone: {difference}"
    return ""


def _row(together: Tensors, row: int, alone: Tensors) -> dict[str, Array]:
    """One row of a batch, without what it has since other rows are longer."""
    return {
        name: array[(slice(row, row + 1), *(slice(length) for length in alone[name].shape[1:]))]
        for name, array in together.items()
    }


def largest_difference(model: Model, reference: Model) -> float:
    """How far any float of any output is from the reference's, on the samples of every shape and on the golden ones.

    Infinite where one is a number and the other none.
    """
    given = [samples.inputs(model, shape) for shape in model.shapes()] + [dict(sample.inputs) for sample in model.golden]
    largest = 0.0
    for inputs in given:
        where = f"model {model.key}: beside float32"
        came, wanted = infer(model, inputs, where), infer(reference, inputs, where)
        for spec in model.outputs:
            if spec.datatype in FLOATS:
                largest = max(largest, _gap(came[spec.name].astype(np.float64), wanted[spec.name].astype(np.float64)))
    return largest


def _gap(one: Array, other: Array) -> float:
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    numbers = np.isfinite(one) & np.isfinite(other)
    if not (same | numbers).all():
        return math.inf
    return float(np.abs(one[~same] - other[~same]).max(initial=0.0))


def bound_to_thread(model: Model) -> str:
    """Say what a model, which has run in the calling thread, raises in another; empty if nothing.

    Its own Python may hold what belongs to the thread that made it.
    """
    where = f"model {model.key}: in another thread"
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(infer, model, samples.inputs(model, model.shapes()[0]), where).result()
        except ModelError as error:
            return str(error)
    return ""


def several_threads(model: Model, threads: int) -> None:
    """Raise `ModelError` unless `threads` threads at once get the answer that one gets."""
    inputs = samples.inputs(model, model.shapes()[0])
    where = f"model {model.key}: {threads} threads at once"
    expected = infer(model, inputs, where)
    with ThreadPoolExecutor(threads) as pool:
        for answer in pool.map(lambda _: infer(model, inputs, where), range(threads)):
            difference = _differ(model, expected, answer)
            if difference:
                message = f"{where} get another answer than one: {difference}"
                raise ModelError(message)


def _differ(model: Model, expected: Mapping[str, Array], actual: Tensors) -> str:
    specs = {spec.name: spec for spec in model.outputs}
    differences = (_difference(model, specs[name], array, actual[name]) for name, array in expected.items())
    return next((difference for difference in differences if difference), "")


def _difference(model: Model, spec: TensorSpec, expected: Array, actual: Array) -> str:
    if expected.shape != actual.shape:
        return f"output {spec.name!r} must have shape {list(expected.shape)}, has {list(actual.shape)}"
    bound = ""
    if spec.datatype in FLOATS:
        rtol, atol = model.files.toml.tolerance(model.precision, spec.datatype)
        wrong = ~np.isclose(actual.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol)
        bound = f", rtol is {rtol:g} and atol {atol:g}"
    else:
        wrong = np.asarray(expected != actual)
    if not wrong.any():
        return ""
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    wanted, came = (array[place] if spec.datatype == "BYTES" else array[place].item() for array in (expected, actual))
    return f"output {spec.name!r} at {list(place)} must be {wanted!r}, is {came!r}{bound}"
