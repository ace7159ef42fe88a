"""Run every shape of a model until its latency has settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from server.engines.engine import Session
from server.exits import AskedToStopError, ExitError, GpuFullError, GpuMemoryError, ModelError, ResourceError
from server.models.model import Model, Prepared
from server.models.shapes import Shape
from server.refusals import ModelFailedError
from server.tensors import FLOATS, Tensors
from server.warmup import samples
from server.warmup.polite import FULL_SPEED, Pace
from server.warmup.waiting import own_clock

WINDOW = 3
"""Runs that are compared with the runs before them."""
WINDOW_BESIDE = 1
"""The same beside others that serve, which feel each run."""
LEAST_RUNS = 3
"""TorchScript compiles in the second."""
SETTLED = 0.9
"""Settled: the best of a window is no better than this share of the best before it."""
AS_FAST = 1.25
"""A worker that takes no more than so many times as long as others is as fast as they are."""
MOST_RUNS = 50
MOST_SECONDS = 5.0
LONGEST_TEXT = 400
"""Characters of what a model raised, both ends of it: a compiler says at the end what is wrong."""
LONGEST_REMEMBERED = 1.0
"""Seconds that a run of a shape may take which nobody declared, to be warmed all the same."""

_log = logging.getLogger("gunicorn.error")


@dataclass(frozen=True, slots=True)
class Warmed:
    """How long one shape took."""

    shape: Shape
    first_ms: float
    """The whole way."""
    steady_ms: float
    """Likewise; on a GPU what its own events say."""
    runs: int


def warm(
    model: Model,
    say: Callable[[str], None],
    seconds: float = MOST_SECONDS,
    pace: Pace = FULL_SPEED,
    known: Sequence[float] = (),
) -> Iterator[Warmed]:
    """Run each shape of `model` the whole way until it has settled, for up to `seconds`, looking at every answer.

    `known`: in milliseconds by shape, how long each takes others that are proven with the same; a run that is as fast is the
    last. Raises `ModelError` naming model, shape and check if the model raises or answers wrongly.
    """
    for place, (shape, where) in enumerate(_said(model, say)):
        other = known[place] if known else 0.0
        times = _settle(_prepared(model, shape, where), model.session, seconds, pace, AS_FAST * other)
        # Theirs may have been measured at a bad moment, ours may still have been getting faster: the less of both is right.
        last = sorted((times[1:] or times)[-WINDOW:])  # the first was cold
        steady = min(times[-1], other) if times[-1] <= AS_FAST * other else last[(len(last) - 1) // 2]
        yield Warmed(shape, times[0], steady, len(times))


def check(model: Model, shape: Shape, outputs: Tensors, where: str) -> None:
    """Raise `ModelError` unless every output of a run in `shape` is there, of the right type and shape, without a NaN."""
    for spec in model.outputs:
        array = outputs.get(spec.name)
        if array is None:
            message = f"{where}: output {spec.name!r} is missing"
            raise ModelError(message)
        if array.dtype != spec.dtype or not model.fits(spec, array.shape, shape):
            message = (
                f"{where}: output {spec.name!r} must be {spec.datatype} {list(spec.shape)}, is {array.dtype} {list(array.shape)}"
            )
            raise ModelError(message)
        if spec.datatype in FLOATS and np.isnan(array).any():
            message = f"{where}: output {spec.name!r} has a NaN"
            raise ModelError(message)


def once(model: Model, say: Callable[[str], None]) -> None:
    """Run each shape once, looking at the answer; raises as `warm` does."""
    for shape, where in _said(model, say):
        _prepared(model, shape, where)()


def runs_well(model: Model, shape: Shape) -> bool:
    """Whether a shape that a client once sent is fit to be warmed: it must neither fail nor take long.

    Clients are not trusted: what one of them sends must not be able to refuse a reload.
    """
    with own_clock() as clock:
        start = clock()
        try:
            _prepared(model, shape, f"model {model.key}, shape {model.plan.describe(shape)}, met cold before")()
        except (ExitError, MemoryError) as error:
            _log.warning("%s: not warmed", error)
            return False
        return clock() - start < LONGEST_REMEMBERED


def _said(model: Model, say: Callable[[str], None]) -> Iterator[tuple[Shape, str]]:
    for shape in model.shapes():
        where = f"model {model.key}, shape {model.plan.describe(shape)}"
        say(where)
        yield shape, where


def infer(model: Model, inputs: Tensors, where: str) -> Tensors:
    """Run the whole way; whatever the model raises, but for `MemoryError`, comes as a `ModelError` that says `where`."""
    with _blamed(where):
        return model.infer(inputs)


def _prepared(model: Model, shape: Shape, where: str) -> Callable[[], None]:
    """A run of one shape the whole way, on inputs that are made beforehand."""
    inputs = samples.inputs(model, shape)
    with _blamed(where):
        prepared = next(model.prepare(inputs))
    # The operator's Python may turn any input into one shape; those that are declared must run all the same.
    meant = shape in model.remembered or all(axis in model.plan.lengths for axis in model.plan.axes)
    own = Prepared(samples.own(model, shape), shape, shape) if meant and prepared.shape != shape else None

    def run() -> None:
        check(model, prepared.came, infer(model, inputs, where), where)
        if own:
            with _blamed(where):
                model.run([own], shape)

    return run


@contextmanager
def _blamed(where: str) -> Iterator[None]:
    try:
        yield
    except GpuMemoryError as error:  # of its own share, unless others have taken that
        message = f"{where}: {error}"
        raise (ResourceError if isinstance(error, GpuFullError) else ModelError)(message) from error
    except (MemoryError, AskedToStopError):
        raise
    except ModelFailedError as error:  # our own words
        message = f"{where}: {error}"
        raise ModelError(message) from error
    except BaseException as error:  # also a model's `SystemExit`, and a panic of a library in Rust
        text = " ".join(str(error).split())
        short = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]} … {text[-LONGEST_TEXT // 2 :]}"
        message = f"{where}: raised {type(error).__name__}: {short}"
        raise ModelError(message) from error


def _settle(run: Callable[[], None], session: Session, seconds: float, pace: Pace, enough_ms: float) -> list[float]:
    """Times in milliseconds of runs until they get no faster, two windows and `LEAST_RUNS` unless time is up; or one will do.

    The first is of all that there is to it, the others are the device's own where it has the time.
    """
    window = WINDOW if pace is FULL_SPEED else WINDOW_BESIDE

    def timed() -> float:
        with pace.clock() as clock:
            start = clock()
            run()
            took = (clock() - start) * 1e3
        return session.device_ms or took if times else took

    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < MOST_RUNS:
        times.append(pace.aside(timed))
        settled = len(times) >= max(2 * window, LEAST_RUNS) and min(times[-window:]) >= SETTLED * min(times[:-window])
        if times[-1] <= enough_ms or settled or (time.monotonic() > end and len(times) > window):
            break
    return times
