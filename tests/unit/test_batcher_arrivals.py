"""Whatever comes, in whatever order: everybody gets exactly what is his, and nobody is forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.models.model import Model
from server.models.shapes import Shape
from server.refusals import AbandonedError, LateError, ModelFailedError
from server.tensors import ANY, Array, Tensors, TensorSpec
from server.worker.assistant import Assistants
from server.worker.loop import Loop
from tests.unit.fakes import FakeSession, model
from tests.unit.parked import LONG, Asked, Line

SIZES = [1, 2, 4]
WIDTHS = [4, 8]
ASSISTANTS = Assistants(Loop())
"""One for all examples, since its threads stay."""
FAILS = 1.0
"""In the last place of a row: the model raises for it."""


@dataclass(frozen=True)
class Arrival:
    """One request."""

    model: int
    rows: int
    width: int
    fails: bool
    late: bool


@dataclass(frozen=True)
class Leaving:
    """The client of one of those that wait goes away: which, counted round."""

    which: int


@dataclass(frozen=True)
class Turn:
    """The loop has nothing left to read."""


ARRIVAL = st.builds(
    Arrival,
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([False] * 9 + [True]),
)
STEPS = st.lists(st.one_of(ARRIVAL, ARRIVAL, ARRIVAL, st.builds(Leaving, st.integers(0, 99)), st.builds(Turn)), max_size=60)


@dataclass
class Told:
    """What has happened so far."""

    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))
    """A number for each row, so that no two are alike."""
    asked: list[tuple[Arrival, Asked]] = field(default_factory=list)
    left: list[Asked] = field(default_factory=list)


def run(inputs: Tensors) -> dict[str, Array]:
    """Give back what came; fail for a row that asks for it."""
    if (inputs["x"][:, 0] == FAILS).any():
        message = "as asked"
        raise ValueError(message)
    return {"y": inputs["x"]}


def models(*, overlaps: bool) -> list[Model]:
    """Two that mix, one of them perhaps on another device; one that takes only declared rows; one that has no batch."""
    x, y = (TensorSpec(name, "FP32", (ANY, ANY), ("n", "width")) for name in "xy")
    axes = {"width": WIDTHS}
    kinds = [
        {"batch_sizes": SIZES, "axes": axes},
        {"batch_sizes": [2, 8], "axes": axes},
        {"batch_sizes": [*SIZES, 9], "axes": axes, "batched": False},
        {"batch_sizes": None, "axes": {"n": [9], **axes}},
    ]
    made = [model(run, (x,), (y,), name="abcd"[index], index=index, **kind) for index, kind in enumerate(kinds)]  # type: ignore[arg-type]
    assert isinstance(made[0].session, FakeSession)
    made[0].session.overlaps = overlaps
    return made


def play(step: Arrival | Leaving | Turn, line: Line, served: list[Model], told: Told) -> None:
    """Let one thing happen."""
    match step:
        case Turn():
            line.loop.turn(0)
            line.batcher.turn()
        case Leaving():
            waiting = [each for _, each in told.asked if not each.done]
            if waiting:
                told.left.append(waiting[step.which % len(waiting)])
                line.abandon(told.left[-1])
        case Arrival():
            values = np.array([[next(told.numbers)] * step.width for _ in range(step.rows)], np.float32)
            if step.fails:
                values[-1, 0] = FAILS
            told.asked.append((step, line.ask(served[step.model], values, (LONG + 1) * step.late)))


def check(arrival: Arrival, asked: Asked, left: list[Asked]) -> None:
    """One request has what it must have."""
    if asked in left:
        assert isinstance(asked.error, AbandonedError)
    elif arrival.model == 2 and arrival.rows not in (*SIZES, 9):
        assert "axis 'batch' must be one of 1, 2, 4, 9" in str(asked.error)
    elif arrival.late:
        assert isinstance(asked.error, LateError)
    elif arrival.fails:
        assert isinstance(asked.error, ModelFailedError)
    else:
        assert asked.right, asked


@given(STEPS, st.sampled_from(["flat", "grows", "unknown"]), st.booleans())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_everybody_gets_his_own(steps: list[Arrival | Leaving | Turn], time: str, overlaps: bool) -> None:  # noqa: FBT001
    """Arrivals, turns, failures, late ones and clients that leave, over four models: each gets exactly its own."""
    served = models(overlaps=overlaps)

    def steady(_model: Model, shape: Shape) -> float:
        return {"flat": 5.0, "grows": 5.0 * shape[0], "unknown": 0.0}[time]

    line, told = Line(*served, steady=steady, assistants=ASSISTANTS), Told()
    for step in steps:
        play(step, line, served, told)
    line.run(lambda: all(each.done for _, each in told.asked))

    for arrival, asked in told.asked:
        check(arrival, asked, told.left)
    assert (0, False) == (line.batcher.waiting, line.batcher.ready)
    assert line.tasks.count == len(line.tasks.idle)
    assert {} == line.watchdog.running
    for made in served:
        assert isinstance(made.session, FakeSession)
        assert {run["x"].shape for run in made.session.runs} <= set(made.shapes())
    assert 0 == line.serving.board.slots["models"]["cold"].sum()
    line.close()
