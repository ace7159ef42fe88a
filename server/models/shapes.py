"""Which shapes a model runs: its axes, the lengths declared for each, and how a request is made to fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from server.exits import ConfigurationError
from server.refusals import BadInputError
from server.scoreboard import MAX_AXES, MAX_SHAPES
from server.tensors import Array, Tensors, TensorSpec

BATCH = "batch"
"""The name of the leading axis of a model that declares batch sizes."""

Shape = tuple[int, ...]
"""One length per axis of a plan, in the plan's order."""


@dataclass(frozen=True)
class Plan:
    """The free axes of a model and the lengths that it runs of each.

    An axis without declared lengths is never padded: it runs as it comes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lengths: Mapping[str, tuple[int, ...]]
    """Declared lengths by axis, ascending."""
    axes: tuple[str, ...]
    """Every free axis, the batch first."""
    batched: bool
    """Whether the leading axis is a declared batch; it is then called `BATCH`."""
    fills: Mapping[str, int] = field(default_factory=dict)
    """What an input is padded with, where that is not zero."""

    def shapes(self, remembered: Iterable[Shape] = ()) -> list[Shape]:
        """Every shape to warm: all combinations of declared lengths, 1 for an axis that has none, and those remembered."""
        declared = itertools.product(*(self.lengths.get(axis, (1,)) for axis in self.axes))
        fitting = (shape for shape in remembered if len(shape) == len(self.axes) and self.padded(shape) == shape)
        return list(dict.fromkeys(itertools.chain(declared, fitting)))[:MAX_SHAPES]

    @cached_property
    def _places(self) -> list[tuple[str, str, int]]:
        """Every free axis of every input: its name, the input's, and which of its axes it is."""
        return [(axis, spec.name, place) for spec in self.inputs for place, axis in enumerate(spec.axes) if axis]

    @cached_property
    def _rows_only(self) -> bool:
        """Whether rows are all that is ever cut off an output."""
        return self.batched and all(spec.axes.count(None) == len(spec.axes) - 1 for spec in self.outputs)

    def measure(self, inputs: Tensors) -> Shape:
        """Read the length of each axis off the inputs; raise `BadInputError` where two inputs differ in one."""
        found: dict[str, int] = {}
        for axis, name, place in self._places:
            length = inputs[name].shape[place]
            known = found.setdefault(axis, length)
            if known != length:
                first = next(other for known_axis, other, _ in self._places if known_axis == axis)
                message = f"axis {axis!r} is {known} in input {first!r} and {length} in input {name!r}"
                raise BadInputError(message)
        return tuple([found[axis] for axis in self.axes])

    def padded(self, shape: Shape) -> Shape | None:
        """The smallest declared shape that holds `shape`, or None."""
        result = []
        for axis, length in zip(self.axes, shape, strict=True):
            fitting = [declared for declared in self.lengths.get(axis, (length,)) if declared >= length]
            if not fitting:
                return None
            result.append(fitting[0])
        return tuple(result)

    def fit(self, shape: Shape, *, exact: bool) -> Shape:
        """The declared shape that a request of `shape` runs in; raise `BadInputError` naming the limit where there is none.

        `exact`: rows must not be padded, since they depend on each other.
        """
        for axis, length in zip(self.axes, shape, strict=True):
            if length < 1:
                message = f"axis {axis!r} must be at least 1, got {length}"
                raise BadInputError(message)
        for axis, length in zip(self.axes, shape, strict=True):
            declared = self.lengths.get(axis, (length,))
            if exact and self.batched and axis == BATCH and length not in declared:
                message = f"axis {axis!r} must be one of {', '.join(map(str, declared))}, got {length}"
                raise BadInputError(message)
            if length > declared[-1]:
                message = f"axis {axis!r} must be at most {declared[-1]}, got {length}"
                raise BadInputError(message)
        return self.padded(shape) or shape

    def rows(self, shape: Shape) -> int:
        """How many rows a batch of `shape` has; 1 where nothing is batched."""
        return shape[0] if self.batched else 1

    def describe(self, shape: Shape) -> str:
        """`shape` in words, for the log."""
        return ", ".join(f"{axis}={length}" for axis, length in zip(self.axes, shape, strict=True)) or "its one shape"

    def stack(self, parts: Sequence[Tensors], target: Shape) -> dict[str, Array]:
        """Inputs of `target`: the rows of `parts` one after another, the places that are left filled up.

        One part that has the shape already is passed on as it is.
        """
        lengths = dict(zip(self.axes, target, strict=True))
        return {
            spec.name: _stack([part[spec.name] for part in parts], spec, lengths, self.fills.get(spec.name, 0))
            for spec in self.inputs
        }

    def cut(self, outputs: Tensors, shape: Shape, start: int = 0) -> dict[str, Array]:
        """Outputs without what padding added: of a batch the rows from `start` on, as many as `shape` has."""
        if self._rows_only:
            stop = start + shape[0]
            return {spec.name: outputs[spec.name][start:stop] for spec in self.outputs}
        lengths = dict(zip(self.axes, shape, strict=True))
        made = {}
        for spec in self.outputs:
            places = [slice(lengths.get(axis) if axis else None) for axis in spec.axes]
            if start:
                places[0] = slice(start, start + shape[0])
            made[spec.name] = outputs[spec.name][tuple(places)]
        return made


def _stack(arrays: list[Array], spec: TensorSpec, lengths: Mapping[str, int], fill: int) -> Array:
    first = arrays[0]
    target = tuple(lengths[axis] if axis else length for axis, length in zip(spec.axes, first.shape, strict=True))
    if first.shape == target:
        return first
    empty = b"" if first.dtype == object else fill
    rest = target[1:]
    if len(arrays) > 1 and all(array.shape[1:] == rest for array in arrays):
        left = target[0] - sum(map(len, arrays))
        return np.concatenate([*arrays, np.full((left, *rest), empty, first.dtype)] if left else arrays)
    grown = np.full(target, empty, first.dtype)
    start = 0
    for array in arrays:
        rows = grown[start : start + len(array)] if len(arrays) > 1 else grown
        rows[tuple(slice(length) for length in array.shape)] = array
        start += len(array) if array.ndim else 0
    return grown


def plan(
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    batch_sizes: Iterable[int] | None,
    lengths: Mapping[str, Iterable[int]],
) -> Plan:
    """Make the plan of a model whose file says `inputs` and `outputs` and whose `model.toml` says the rest.

    Raises `ConfigurationError` naming the axis and the bound.
    """
    inputs, outputs = tuple(inputs), tuple(outputs)
    declared = {axis: tuple(sorted(set(values))) for axis, values in lengths.items()}
    if batch_sizes is not None:
        declared[BATCH] = tuple(sorted(set(batch_sizes)))
        inputs = tuple(_batch(spec, "input") for spec in inputs)
        outputs = tuple(_batch(spec, "output") for spec in outputs)
    elif BATCH in declared:
        message = f"axis {BATCH!r} in [axes]: the leading axis is declared by batch_sizes, another must have another name"
        raise ConfigurationError(message)
    axes = tuple(dict.fromkeys(axis for spec in inputs for axis in spec.axes if axis))
    for axis in declared:
        if axis not in axes:
            message = f"axis {axis!r} is declared, the model's free axes are {', '.join(map(repr, axes)) or 'none'}"
            raise ConfigurationError(message)
    batched = batch_sizes is not None
    ordered = tuple(sorted(axes, key=lambda axis: not batched or axis != BATCH))
    made = Plan(inputs, outputs, declared, ordered, batched)
    for what, count, bound in (("free axes", len(axes), MAX_AXES), ("declared shapes", _count(made), MAX_SHAPES)):
        if count > bound:
            message = f"the model has {count} {what}, at most {bound} can be served"
            raise ConfigurationError(message)
    return made


def _count(made: Plan) -> int:
    count = 1
    for axis in made.axes:
        count *= len(made.lengths.get(axis, (1,)))
    return count


def _batch(spec: TensorSpec, kind: str) -> TensorSpec:
    """The spec with its leading axis named as the batch."""
    if not spec.axes or spec.axes[0] is None:
        first = spec.shape[0] if spec.shape else "absent"
        message = f"batch_sizes needs a free leading axis, that of {kind} {spec.name!r} is {first}"
        raise ConfigurationError(message)
    if BATCH in spec.axes[1:]:
        message = f"an axis of {kind} {spec.name!r} besides the leading one is called {BATCH!r}, as the axis of batch_sizes is"
        raise ConfigurationError(message)
    return TensorSpec(spec.name, spec.datatype, spec.shape, (BATCH, *spec.axes[1:]))
