"""Warming: each shape until it has settled, and a look at every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.exits import GpuMemoryError, ModelError
from server.models.model import Model
from server.models.operator import OperatorPython
from server.refusals import BadInputError
from server.tensors import Array, Tensors
from server.warmup import polite, waiting, warm
from server.warmup.polite import Pace
from tests.unit.fakes import FakeSession, echo, model, rows

LIMIT = warm.MOST_RUNS


class Clock:
    """A clock that only a model's runs move, each by the next of `times` (milliseconds), the last one over and over."""

    def __init__(self, times: Iterable[float]) -> None:
        """Begin at 0."""
        self.times = list(times)
        self.now = 0.0

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Take the next time."""
        self.now += (self.times.pop(0) if len(self.times) > 1 else self.times[0]) / 1e3
        return echo(inputs)

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now

    monotonic = perf_counter

    def rules(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it be what runs are timed by; nobody counts how long they wait."""
        for module in (warm, polite, waiting):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr(waiting, "COUNTED", Path("/nowhere"))


def warmed(monkeypatch: pytest.MonkeyPatch, times: Iterable[float]) -> warm.Warmed:
    """Warm a model of one shape by a clock of its own."""
    clock = Clock(times)
    clock.rules(monkeypatch)
    (only,) = warm.warm(model(clock.run, batch_sizes=[1]), lambda _: None)
    return only


@pytest.mark.parametrize(
    ("times", "first", "steady", "runs"),
    [
        ([5], 5, 5, 6),
        ([80, 20, 5], 80, 5, 6),
        ([80, 60, 40, 20, 10, 5], 80, 5, 9),
        ([100 * 0.8**turn for turn in range(60)], 100, 100 * 0.8 ** (LIMIT - 2), LIMIT),
        ([2000], 2000, 2000, 4),
        ([8000, 10], 8000, 10, 4),
        ([5, 5, 5, 5, 5, 70], 5, 5, 6),
    ],
)
def test_settled(monkeypatch: pytest.MonkeyPatch, times: list[float], first: float, steady: float, runs: int) -> None:
    """A shape runs until it gets no faster, or so often, or so long; the first run and the median of the last ones are kept."""
    settled = warmed(monkeypatch, times)

    assert ((1,), runs) == (settled.shape, settled.runs)
    assert [first, steady] == pytest.approx([settled.first_ms, settled.steady_ms])


@pytest.mark.parametrize(
    ("times", "steady", "runs"),
    [([5], 5, 3), ([300, 60, 90], 60, 3), ([60, 60, 300], 60, 3), ([20, 500, 40], 40, 3), ([100, 400, 60], 60, 4)],
)
def test_settled_beside(monkeypatch: pytest.MonkeyPatch, times: list[float], steady: float, runs: int) -> None:
    """Beside others three runs will do, of which neither the cold one counts nor a noisy one; one that compiles is none."""
    clock = Clock(times)
    clock.rules(monkeypatch)

    (only,) = warm.warm(model(clock.run, batch_sizes=[1]), lambda _: None, pace=Pace())

    assert [runs, steady] == pytest.approx([only.runs, only.steady_ms])


@pytest.mark.parametrize(
    ("times", "known", "steady", "runs"),
    [([5], 5, 5, 1), ([4], 5, 4, 1), ([80, 6], 5, 5, 2), ([80, 40, 20, 6], 5, 5, 4), ([9], 5, 9, 6)],
)
def test_known(monkeypatch: pytest.MonkeyPatch, times: list[float], known: float, steady: float, runs: int) -> None:
    """Where others know how long a shape takes, it runs until it is as fast, or has settled; what is kept is the less of both."""
    clock = Clock(times)
    clock.rules(monkeypatch)

    (only,) = warm.warm(model(clock.run, batch_sizes=[1]), lambda _: None, known=[known])

    assert runs == only.runs
    assert [times[0], steady] == pytest.approx([only.first_ms, only.steady_ms])


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the first run is the whole of it, and its own time counts from then on, to settle and to be kept."""
    device = iter([99.0, 3.0, 2.0, 2.5, 2.25, 2.125, 2.0])
    clock = Clock([500, 40])
    clock.rules(monkeypatch)
    made = model(clock.run, batch_sizes=[1])
    session = made.session
    assert isinstance(session, FakeSession)

    def run(inputs: Tensors) -> dict[str, Array]:
        session.device_ms = next(device)
        return clock.run(inputs)

    session.answer = run
    (only,) = warm.warm(made, lambda _: None)

    assert [500, 2.25, 6] == pytest.approx([only.first_ms, only.steady_ms, only.runs])


def test_no_memory_on_a_gpu() -> None:
    """Memory of a GPU that runs out is the model's own fault, and the shape is named; that of the machine is nobody's."""

    def full(error: MemoryError) -> Callable[[Tensors], dict[str, Array]]:
        def run(inputs: Tensors) -> dict[str, Array]:
            if len(inputs["x"]) == 4:
                raise error
            return echo(inputs)

        return run

    with pytest.raises(ModelError, match=r"^model m/1, shape batch=4: no room$"):
        list(warm.warm(model(full(GpuMemoryError("no room"))), lambda _: None))
    with pytest.raises(MemoryError, match=r"^no room$"):
        list(warm.warm(model(full(MemoryError("no room"))), lambda _: None))


def test_every_shape() -> None:
    """All shapes run, in that shape and no other, remembered ones included, and each is said before it runs."""
    free = model(remembered=((3,), (2,)), batch_sizes=None)
    batched = model()

    for made, shapes in ((free, [(1,), (3,), (2,)]), (batched, [(1,), (2,), (4,)])):
        said: list[str] = []
        session = made.session
        assert isinstance(session, FakeSession)

        assert shapes == [each.shape for each in warm.warm(made, said.append)]

        assert list(dict.fromkeys(inputs["x"].shape[0] for inputs in session.runs)) == [rows for (rows,) in shapes]
        assert [f"model m/1, shape {made.plan.describe(shape)}" for shape in shapes] == said


def test_once() -> None:
    """The trial runs each shape once."""
    made = model()

    warm.once(made, lambda _: None)

    assert isinstance(made.session, FakeSession)
    assert [1, 2, 4] == [len(inputs["x"]) for inputs in made.session.runs]


def one_row(inputs: dict[str, Array]) -> dict[str, Array]:
    """The operator's Python of a model that is asked for batches, but looks at the first row alone."""
    return {"x": inputs["x"][:1]}


def ran(made: Model) -> list[int]:
    """How many rows each run had."""
    assert isinstance(made.session, FakeSession)
    return [len(inputs["x"]) for inputs in made.session.runs]


def test_shapes_that_the_operators_python_never_makes() -> None:
    """Declared shapes are run all the same, on the model's own inputs: another request, or batching, may need them."""
    made = model(python=OperatorPython(preprocess=one_row))

    warm.once(made, lambda _: None)

    assert [1, 1, 2, 1, 4] == ran(made)


def test_undeclared_shapes_that_the_operators_python_never_makes() -> None:
    """Where no lengths are declared there is nothing to run besides what comes; a shape that was met cold is run."""
    made = model(python=OperatorPython(preprocess=one_row), batch_sizes=None, remembered=((3,),))

    warm.once(made, lambda _: None)

    assert [1, 1, 3] == ran(made)


def test_own_inputs_raise() -> None:
    """A model that raises on a declared shape that only its own inputs reach is refused by that shape."""
    made = model(raising_from(4), python=OperatorPython(preprocess=one_row))

    with pytest.raises(ModelError, match=r"^model m/1, shape batch=4: raised ValueError: 4 rows$"):
        warm.once(made, lambda _: None)


def raising_from(most: int) -> Any:
    """A model that raises at `most` rows."""

    def run(inputs: Tensors) -> dict[str, Array]:
        if len(inputs["x"]) >= most:
            message = f"{len(inputs['x'])} rows"
            raise ValueError(message)
        return echo(inputs)

    return run


def answers(part: Any) -> Any:
    """A model that gives `part` for `y`, made from its input if it is a function."""
    return lambda inputs: {"y": part(inputs["x"]) if callable(part) else part}


def raising(error: Exception) -> Any:
    """A model that raises."""

    def run(_: Tensors) -> Mapping[str, Array]:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "datatype", "part"),
    [
        (answers(lambda x: np.where(np.arange(3) == 2, np.nan, x).astype(np.float32)), "FP32", "output 'y' has a NaN"),
        (answers(lambda x: np.full(x.shape, np.nan, "bfloat16")), "BF16", "output 'y' has a NaN"),
        (answers(lambda x: np.full(x.shape, np.nan, np.float16)), "FP16", "output 'y' has a NaN"),
        (answers(lambda x: x.astype(np.float64)), "FP32", "output 'y' must be FP32 [-1, 3], is float64 [1, 3]"),
        (answers(lambda x: x[:, :2]), "FP32", "output 'y' must have shape [-1, 3], has [1, 2]"),
        (answers(lambda x: x[0]), "FP32", "output 'y' must have shape [-1, 3], has [1]"),
        (answers(lambda x: x[0, 0]), "FP32", "IndexError"),
        (answers(lambda x: x[:, :, None]), "FP32", "output 'y' must have shape [-1, 3], has [1, 3, 1]"),
        (answers(lambda x: x[:0]), "FP32", "output 'y' must have shape [-1, 3], has [0, 3]"),
        (raising(RuntimeError("two\nlines")), "FP32", "raised RuntimeError: two lines"),
        (raising(BadInputError("no")), "FP32", "raised BadInputError: no"),
        (raising(RuntimeError("long" * 1000)), "FP32", "raised RuntimeError: longlong"),
        (lambda _: {}, "FP32", "KeyError"),
    ],
)
def test_wrong_answers(run: Any, datatype: str, part: str) -> None:
    """A model that raises or answers wrongly is refused in one line: model, shape, check."""
    with pytest.raises(ModelError) as refused:
        list(warm.warm(model(run, outputs=(rows("y", datatype),)), lambda _: None))

    assert str(refused.value).startswith("model m/1, shape batch=1: ")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_wrong_in_a_later_shape() -> None:
    """The shape that is named is the one in which it happened."""
    with pytest.raises(ModelError, match=r"shape batch=4: output 'y' has a NaN"):
        warm.once(model(answers(lambda x: x if len(x) < 4 else x * np.float32(np.nan))), lambda _: None)


def test_a_row_per_row() -> None:
    """An answer with fewer rows than the request is wrong, though the number of rows is free."""
    with pytest.raises(ModelError, match=r"shape batch=2: output 'y'"):
        warm.once(model(answers(lambda x: x[:1])), lambda _: None)


@pytest.mark.parametrize("shape", [(4,), (), (4, 3, 1)])
def test_check_axes(shape: tuple[int, ...]) -> None:
    """An answer with another number of axes is wrong, also where those that it has would fit."""
    with pytest.raises(ModelError, match=r"output 'y' must be FP32 \[-1, 3\], is float32"):
        warm.check(model(), (4,), {"y": np.zeros(shape, np.float32)}, "here")


def test_check_missing() -> None:
    """An answer without one of its outputs is wrong, by name."""
    with pytest.raises(ModelError, match=r"^here: output 'y' is missing$"):
        warm.check(model(), (4,), {"z": np.zeros((4, 3), np.float32)}, "here")


@pytest.mark.parametrize("value", [1e300, -np.inf])
def test_large_is_right(value: float) -> None:
    """Numbers that are large or infinite are numbers, and checking them warns of nothing."""
    made = model(answers(lambda x: np.full(x.shape, value)), outputs=(rows("y", "FP64"),))

    warm.once(made, lambda _: None)


def test_memory_error_stays() -> None:
    """Memory that ran out is not the model's fault: it passes through as it is."""
    with pytest.raises(MemoryError):
        warm.once(model(raising(MemoryError())), lambda _: None)


@pytest.mark.parametrize(
    ("run", "well"),
    [
        (echo, True),
        (raising(RuntimeError("no")), False),
        (raising(MemoryError("no")), False),
        (answers(lambda x: x * np.float32(np.nan)), False),
        (answers(lambda x: x if len(x) != 7 else x[:1]), False),
    ],
    ids=["right", "raises", "memory", "nan", "short"],
)
def test_runs_well(caplog: pytest.LogCaptureFixture, run: Any, well: bool) -> None:  # noqa: FBT001
    """A shape that some client sent is fit unless it fails or answers wrongly, which is a warning and never an error."""
    made = model(run, batch_sizes=None)

    assert warm.runs_well(made, (7,)) is well

    assert isinstance(made.session, FakeSession)
    assert [7] == [len(inputs["x"]) for inputs in made.session.runs]
    assert ([] if well else ["WARNING"]) == [record.levelname for record in caplog.records]


@pytest.mark.parametrize(("times", "well"), [([990], True), ([1010], False)])
def test_slow_is_not_well(monkeypatch: pytest.MonkeyPatch, times: list[float], well: bool) -> None:  # noqa: FBT001
    """A shape that takes long is not warmed either."""
    clock = Clock(times)
    clock.rules(monkeypatch)

    assert warm.runs_well(model(clock.run, batch_sizes=None), (7,)) is well
