"""One loaded model: the operator's Python around an engine's session, run in declared shapes only."""

from __future__ import annotations

import dis
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from server.engines.engine import Precision, Session
from server.exits import ConfigurationError
from server.features.text import IDS, MASK, MOST_TEXTS, TYPES, Text
from server.models import golden, shapes
from server.models.golden import Golden
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import TensorTable
from server.models.shapes import BATCH, Plan, Shape
from server.models.source import spec as spec_of
from server.refusals import BadInputError, ModelFailedError
from server.tensors import Array, Tensors, TensorSpec

KNOWN = 1024
"""How many shapes are remembered of which it is known how they fit."""


@dataclass(eq=False, slots=True)
class Prepared:
    """A request, or a part of one, that is ready for the engine but for its padding."""

    inputs: Tensors
    shape: Shape
    """The shape that it runs in where it runs alone."""
    came: Shape
    """The shape that it has."""

    @property
    def rest(self) -> Shape:
        """The shape that it runs in without its rows: what is equal there may run in one batch."""
        return self.shape[1:]


@dataclass(eq=False)
class Model:
    """One version of one model, as a process holds it."""

    files: ModelFiles
    python: OperatorPython
    session: Session
    platform: str
    text: Text | None = None
    """The tokenizer in front of it, after the operator's `preprocess`."""
    index: int = 0
    """Where its counters stand in a slot of the scoreboard."""
    batched: bool = True
    """Whether a row alone gives the row's answer in a batch, so that rows may be padded and mixed."""
    precision: Precision = Precision.FP32
    """What it calculates in, which may be another than is asked for."""
    remembered: tuple[Shape, ...] = ()
    """Shapes of undeclared axes that were met cold before, and are warmed now."""
    plan: Plan = field(init=False)
    taken: tuple[TensorSpec, ...] = field(init=False)
    """What comes after `preprocess`: the model's own inputs, or the text that they are made of."""
    inputs: tuple[TensorSpec, ...] = field(init=False)
    """As clients see them."""
    outputs: tuple[TensorSpec, ...] = field(init=False)
    golden: list[Golden] = field(init=False)
    """The samples with known answers."""

    def __post_init__(self) -> None:
        """Work out the plan and what clients see; raise `ConfigurationError` where file and `model.toml` do not fit."""
        toml = self.files.toml
        try:
            self.plan = shapes.plan(self.session.inputs, self.session.outputs, toml.batch_sizes, toml.axes)
        except ConfigurationError as error:
            message = f"{self.files.folder}: {error}"
            raise ConfigurationError(message) from None
        self.taken = self._behind_text(self.text) if self.text else self.plan.inputs
        self.inputs = _seen(self.taken, toml.inputs, self.plan)
        self.outputs = _seen(self.plan.outputs, toml.outputs, self.plan)
        for side, seen, own, hook in (
            ("inputs", self.inputs, self.taken, "preprocess"),
            ("outputs", self.outputs, self.plan.outputs, "postprocess"),
        ):
            if getattr(self.python, hook) is None and _signature(seen) != _signature(own):
                message = f"{self.files.folder.parent / 'model.toml'}: [[{side}]] other than the model's needs python with {hook}"
                raise ConfigurationError(message)
        self.golden = [golden.load(path, self.inputs, self.outputs) for path in self.files.golden]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.files.name

    @property
    def version(self) -> int:
        """The model's version."""
        return self.files.version

    @cached_property
    def key(self) -> str:
        """`name/version`."""
        return self.files.key

    @cached_property
    def label(self) -> bytes:
        """The key as the scoreboard holds it."""
        return f"model {self.key}".encode()

    def shapes(self) -> list[Shape]:
        """Every shape that is warmed before this model is served."""
        return self.plan.shapes(self.remembered)

    @cached_property
    def mixes(self) -> bool:
        """Whether rows of several requests may run in one batch: they are independent, and every other axis is declared."""
        return self.plan.batched and self.batched and all(axis in self.plan.lengths for axis in self.plan.axes)

    def prepare(self, inputs: Tensors) -> Iterator[Prepared]:
        """Turn what a client sent into what the engine runs, in parts where it has more rows than the largest batch.

        Raises `BadInputError` for inputs that the operator's Python refuses (a `ValueError` of its own) or that fit no shape, and
        `ModelFailedError` if that Python gives the engine something else than it takes.
        """
        made: Tensors = inputs
        if self.python.preprocess:
            try:
                made = self.python.preprocess(dict(inputs))
            except ValueError as error:
                if not _raised_in(error, self.files.python):
                    raise  # a library's text is not meant for clients, and may be about anything
                raise BadInputError(str(error)) from error
            _expect(self.taken, made, "preprocess")
        return map(self._prepared, self._parts(made))

    def _prepared(self, part: Tensors) -> Prepared:
        if self.text:
            part = {**part, **self.text.encode(part[self.text.name], self.plan.inputs)}
        came = self.plan.measure(part)
        return Prepared(part, self._fit(came), came)

    @cached_property
    def _fit(self) -> Callable[[Shape], Shape]:
        # PERF: the same few shapes come again and again.
        return lru_cache(KNOWN)(lambda came: self.plan.fit(came, exact=not self.batched))

    @cached_property
    def _rows(self) -> list[str]:
        """The inputs whose rows may be split among batches."""
        return [spec.name for spec in self.taken if spec.axes and spec.axes[0] == BATCH] if self.mixes else []

    def _parts(self, made: Tensors) -> Iterable[Tensors]:
        """`made`, or slices of it with as many rows as the largest batch, where it has more."""
        rows = [len(made[name]) for name in self._rows]
        most = self.plan.lengths[BATCH][-1] if rows else 0
        # Inputs that differ in rows are refused as a whole.
        if not rows or max(rows) <= most or min(rows) < max(rows):
            return (made,)
        return (
            {name: made[name][start : start + most] if name in self._rows else made[name] for name in made}
            for start in range(0, rows[0], most)
        )

    def run(self, parts: Sequence[Prepared], shape: Shape) -> dict[str, Array]:
        """Run the engine once, in `shape`, on the rows of all `parts`."""
        return self.session.run(self.plan.stack([part.inputs for part in parts], shape))

    def share(self, outputs: Tensors, parts: Sequence[Prepared]) -> list[dict[str, Array]]:
        """What of `outputs` is each part's."""
        if len(parts) == 1:
            return [self.plan.cut(outputs, parts[0].came)]
        starts = itertools.accumulate((part.came[0] for part in parts), initial=0)
        return [self.plan.cut(outputs, part.came, start) for part, start in zip(parts, starts, strict=False)]

    def finish(self, made: Sequence[tuple[Prepared, dict[str, Array]]], inputs: Tensors) -> dict[str, Array]:
        """Turn what each part got into what the client gets; raise `ModelFailedError` if it is not what was declared."""
        outputs, came = made[0][1], made[0][0].came
        if len(made) > 1:
            outputs = {spec.name: _join([part[spec.name] for _, part in made]) for spec in self.plan.outputs}
            came = (sum(part.came[0] for part, _ in made), *map(max, zip(*(part.came[1:] for part, _ in made), strict=True)))
        result = outputs
        if self.python.postprocess:
            result = self.python.postprocess(dict(outputs), dict(inputs))
            _expect(self.outputs, result, "postprocess")
        for spec in self.outputs:
            if spec.name not in result or not self._fits(spec.name, result[spec.name].shape, came):
                given = list(result[spec.name].shape) if spec.name in result else "nothing"
                message = f"output {spec.name!r} must have shape {list(spec.shape)}, has {given}"
                raise ModelFailedError(message)
        return result

    @cached_property
    def _fits(self) -> Callable[[str, tuple[int, ...], Shape], bool]:
        # PERF: as `_fit`.
        specs = {spec.name: spec for spec in self.outputs}
        return lru_cache(KNOWN)(lambda name, shape, came: self.fits(specs[name], shape, came))

    def fits(self, spec: TensorSpec, shape: tuple[int, ...], came: Shape) -> bool:
        """Whether an output of `shape` is what `spec` says, for inputs in the shape `came`."""
        lengths = dict(zip(self.plan.axes, came, strict=True))
        axes = zip(spec.shape, spec.axes, shape, strict=False)
        return len(shape) == len(spec.shape) and all(
            actual == (length if axis is None else lengths.get(axis, actual)) for length, axis, actual in axes
        )

    def _behind_text(self, text: Text) -> tuple[TensorSpec, ...]:
        """What stands where the tokenizer's tensors stood: the text; and set the tokenizer to the length buckets."""
        toml = self.files.folder.parent / "model.toml"
        ids = next((spec for spec in self.plan.inputs if spec.name == IDS), None)
        if ids is None or len(ids.shape) != 2:  # noqa: PLR2004 - rows and length
            have = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in self.plan.inputs)
            message = f"{toml}: [text] needs a model with {IDS} of two axes, this one has {have}"
            raise ConfigurationError(message)
        axis = ids.axes[1]
        if axis and axis not in self.plan.lengths:
            message = f"{toml}: [text] needs length buckets, axes.{axis} = [...]"
            raise ConfigurationError(message)
        lead = ids.axes[0]
        rows = self.plan.lengths.get(lead, (MOST_TEXTS,))[-1] if lead else ids.shape[0]
        text.fit(rows, self.plan.lengths[axis][-1] if axis else ids.shape[1], fixed=axis is None)
        self.plan = replace(self.plan, fills=text.fills)
        others = (spec for spec in self.plan.inputs if spec.name not in (IDS, MASK, TYPES))
        return (TensorSpec(text.name, "BYTES", ids.shape[:1], ids.axes[:1]), *others)

    def infer(self, inputs: Tensors) -> dict[str, Array]:
        """The whole way, from what a client sends to what it gets."""
        made = [(part, self.share(self.run([part], part.shape), [part])[0]) for part in self.prepare(inputs)]
        return self.finish(made, inputs)


def _join(parts: list[Array]) -> Array:
    """The rows of all parts; of texts those of one part may be longer than another's, the rest is zeros then."""
    shape = tuple(max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True))
    if all(part.shape[1:] == shape for part in parts):
        return np.concatenate(parts)
    joined = np.zeros((sum(map(len, parts)), *shape), parts[0].dtype)
    start = 0
    for part in parts:
        joined[(slice(start, start + len(part)), *map(slice, part.shape[1:]))] = part
        start += len(part)
    return joined


def _raised_in(error: Exception, path: Path | None) -> bool:
    """Whether a `raise` in the file at `path` itself raised it, and nothing that it called, C code included."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename != str(path):
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _seen(specs: tuple[TensorSpec, ...], given: list[TensorTable] | None, plan: Plan) -> tuple[TensorSpec, ...]:
    """The tensors as clients see them: those of `model.toml` where it has any, else the model's own."""
    if given is None:
        return specs
    return tuple(spec_of(table, BATCH if plan.batched else None) for table in given)


def _signature(specs: tuple[TensorSpec, ...]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(spec.name, spec.datatype, spec.shape) for spec in specs}


def _expect(specs: tuple[TensorSpec, ...], given: Mapping[str, Array], hook: str) -> None:
    for spec in specs:
        array = given.get(spec.name)
        if array is None or array.dtype != spec.dtype or array.ndim != len(spec.shape):
            came = "nothing" if array is None else f"{array.dtype} with {array.ndim} axes"
            message = f"{hook} must give {spec.name!r} as {spec.datatype} with {len(spec.shape)} axes, gave {came}"
            raise ModelFailedError(message)
