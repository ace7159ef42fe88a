"""What to run a model on before any client does: golden samples where there are some, made-up numbers elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.random import PCG64, Generator  # numpy loads it at its first use, which would be once per worker

from server.models.model import Model
from server.models.shapes import BATCH, Shape
from server.tensors import ANY, FLOATS, Array, TensorSpec

_SEED = 20151210


def inputs(model: Model, shape: Shape) -> dict[str, Array]:
    """Inputs as a client would send them, that run in `shape`; the same ones at every call.

    Rows come from the golden samples in turn where the batch is the only free axis, since real input takes the paths that real
    input takes. Otherwise floats are in [0, 1), integers 0 or 1, bytes a short text;
    a tokenizer gets real sentences that fill `shape`.
    """
    lengths = dict(zip(model.plan.axes, shape, strict=True))
    if model.golden and not lengths:
        return dict(model.golden[0].inputs)
    if model.golden and model.plan.batched and set(lengths) == {BATCH}:
        samples = [sample.inputs for sample in model.golden]
        return {
            spec.name: np.take(
                np.concatenate([sample[spec.name] for sample in samples]), range(lengths[BATCH]), axis=0, mode="wrap"
            )
            for spec in model.inputs
        }
    return made_up(model, shape)


def made_up(model: Model, shape: Shape) -> dict[str, Array]:
    """Inputs of `shape` out of nothing, every row another."""
    lengths = dict(zip(model.plan.axes, shape, strict=True))
    made = _made_up(model.inputs, lengths)
    if model.text and model.text.name in made:
        tokens = model.text.length(model.plan.inputs, lengths)
        made[model.text.name] = model.text.sentences([tokens] * len(made[model.text.name]))
    return made


def mixed(model: Model, rows: int) -> dict[str, Array]:
    """Inputs of so many rows, every one another; texts of all lengths side by side, so that most of them are padded."""
    shortest = tuple(model.plan.lengths.get(axis, (1,))[0] for axis in model.plan.axes[1:])
    made = made_up(model, (rows, *shortest))
    if model.text and model.text.name in made:
        shapes = (dict(zip(model.plan.axes, shape, strict=True)) for shape in model.shapes())
        steps = sorted({model.text.length(model.plan.inputs, lengths) for lengths in shapes})
        made[model.text.name] = model.text.sentences([steps[row % len(steps)] for row in range(rows)])
    return made


def own(model: Model, shape: Shape) -> dict[str, Array]:
    """The model's own inputs, behind tokenizer and the operator's Python, of exactly `shape`."""
    return _made_up(model.plan.inputs, dict(zip(model.plan.axes, shape, strict=True)))


def _made_up(specs: Iterable[TensorSpec], lengths: dict[str, int]) -> dict[str, Array]:
    generator = Generator(PCG64(_SEED))
    return {spec.name: _array(spec, lengths, generator) for spec in specs}


def _array(spec: TensorSpec, lengths: dict[str, int], generator: Generator) -> Array:
    shape = tuple(
        lengths.get(axis or "", 1) if length == ANY else length for axis, length in zip(spec.axes, spec.shape, strict=True)
    )
    if spec.datatype == "BYTES":
        made = np.empty(shape, object)
        made.ravel()[:] = [b"warmfork %d" % number for number in range(made.size)]
        return made
    if spec.datatype in FLOATS:
        return generator.random(shape, np.float32).astype(spec.dtype)
    return generator.integers(0, 2, shape).astype(spec.dtype)
