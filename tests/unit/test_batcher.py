"""Batching what is ready: which shapes run, who shares a batch, whose turn it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.models.model import Model
from server.models.shapes import Shape
from server.refusals import BusyError
from server.tensors import ANY, Array, Tensors, TensorSpec
from tests.unit.fakes import FakeSession, model
from tests.unit.parked import Line, came, row, sizes

SIZES = [1, 2, 4, 8]
EQUAL = 5.0
"""Milliseconds of a run, well above what a batch costs besides it."""


def wide(**toml: Any) -> Model:
    """A model with a second axis, whose lengths are declared."""
    x, y = (TensorSpec(name, "FP32", (ANY, ANY), ("n", "width")) for name in "xy")
    return model(inputs=(x,), outputs=(y,), **{"batch_sizes": SIZES, "axes": {"width": [4, 8]}, **toml})


def grows(_model: Model, shape: Shape) -> float:
    """Time that grows with the rows."""
    return EQUAL * shape[0]


def flat(_model: Model, _shape: Shape) -> float:
    """Time that is the same for any number of rows."""
    return EQUAL


def test_one_request_waits_for_nobody() -> None:
    """A request that is alone runs at the next turn, as it is; and it has not run before."""
    made = model()
    line = Line(made)
    asked = line.ask(made, row(1))
    assert (False, True, 1) == (asked.done, line.batcher.ready, line.batcher.waiting)

    line.batcher.turn()

    assert asked.right
    assert ([1], 0, False) == (sizes(made), line.batcher.waiting, line.batcher.ready)


def test_nothing_to_do() -> None:
    """A turn without a request runs nothing."""
    made = model()
    line = Line(made)
    line.batcher.turn()
    assert ([], False, False) == (sizes(made), line.batcher.ready, line.batcher.full)


@pytest.mark.parametrize("counts", [[1, 1, 1], [3], [2, 1], [1, 2], [1, 1, 1, 2], [5], [3, 3], [7, 1], [8], [1] * 8])
def test_rows_of_requests_mix(counts: list[int]) -> None:
    """Requests of any number of rows share one batch of a declared size, and each gets its own rows back, no padding."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(10 * number + 10, count)) for number, count in enumerate(counts)]

    line.batcher.turn()

    assert all(each.right for each in asked)
    assert [min(size for size in SIZES if size >= sum(counts))] == sizes(made)
    assert (1, sum(counts), 0) == tuple(line.counted()[name] for name in ("batches", "rows", "cold"))


@pytest.mark.parametrize(
    ("steady", "rows", "ran"),
    [
        (grows, 5, [4, 1]),
        (flat, 5, [8]),
        (grows, 3, [2, 1]),
        (flat, 3, [4]),
        (grows, 7, [4, 2, 1]),
        (flat, 17, [8, 8, 1]),
        (grows, 8, [8]),
        (lambda _model, shape: 10 + 10 * (shape[0] == 8), 5, [4, 1]),  # four rows in 10 ms are more than five in 20 ms
        (lambda _model, shape: 10 + 2 * (shape[0] == 8), 5, [8]),
        (lambda _model, shape: 10 + 10 * (shape[0] == 8), 8, [8]),
        (lambda _model, shape: 0.0005 * shape[0], 5, [8]),  # too quick for the measure to mean anything
        (lambda _model, _shape: 0.0, 5, [8]),  # not measured
        (lambda _model, shape: EQUAL if shape[0] < 8 else 0.0, 5, [8]),
    ],
)
def test_size_by_what_was_measured(steady: Line, rows: int, ran: list[int]) -> None:
    """Five rows run as four and one where time grows with rows, and as eight where it does not."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=steady)  # type: ignore[arg-type] # one of the functions above
    asked = [line.ask(made, row(10 * number + 10)) for number in range(rows)]

    line.run()

    assert ran == sizes(made)
    assert all(each.right for each in asked)
    assert 0 == line.counted()["cold"]


def test_measured_when_it_was_warmed() -> None:
    """What decides is what this worker's own slot says of each shape."""
    made = model(batch_sizes=SIZES)
    for per_row, ran in ((10.0, [4, 1]), (0.0, [8])):
        line = Line(made)
        line.counted()["shapes"]["steady_ms"][: len(SIZES)] = [10 + per_row * (size - 1) for size in SIZES]
        for number in range(5):
            line.ask(made, row(number + 1))
        assert isinstance(made.session, FakeSession)
        made.session.runs.clear()
        line.run()
        assert ran == sizes(made)


def test_a_large_request_is_run_whole() -> None:
    """A request is not cut to suit a size that is quicker: it runs in the smallest size that holds it, or with others in more."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=grows)
    asked = [line.ask(made, row(10, 5)), line.ask(made, row(20, 3))]
    line.run()
    assert all(each.right for each in asked)
    assert [8] == sizes(made)


def test_more_rows_than_the_largest() -> None:
    """A request over the largest batch runs in parts, others between them, and comes back whole."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(10, 19)), line.ask(made, row(100, 5))]
    line.run()
    assert all(each.right for each in asked)
    assert [8, 8, 8, 4] == sizes(made)
    assert (24, 0) == (line.counted()["rows"], line.counted()["cold"])


def test_oldest_first() -> None:
    """Of one model whoever came first runs first, though somebody later would fill the batch better."""
    made = model(batch_sizes=[1, 2, 4])
    line = Line(made, steady=flat)
    for value, count in ((1, 3), (2, 3), (3, 1), (4, 2), (5, 4)):
        line.ask(made, row(value, count))
    line.run()
    firsts = [values[0] for values in came(made)]
    assert [1, 2, 4, 5] == firsts
    assert [1, 1, 1, 3] == came(made)[0]  # the third is the first that has room beside the first


def test_lengths_do_not_mix() -> None:
    """What runs in another length waits for its own batch, behind whoever is older; the lengths are padded and cut."""
    made = wide()
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(10 * number + 10, 1, width)) for number, width in enumerate([3, 8, 4, 5, 1])]
    line.batcher.turn()
    assert [True, False, True, False, True] == [each.done for each in asked]
    line.run()
    assert all(each.right for each in asked)
    assert isinstance(made.session, FakeSession)
    assert [(4, 4), (2, 8)] == [run["x"].shape for run in made.session.runs]
    assert 0 == line.counted()["cold"]


def test_turns_go_round() -> None:
    """A model with a thousand requests lets every other have its turn after each batch."""
    busy, *others = models = [model(name=name, index=index, batch_sizes=SIZES) for index, name in enumerate("abcd")]
    order: list[str] = []

    def noted(each: Model) -> None:
        session = each.session
        assert isinstance(session, FakeSession)

        def run(inputs: Tensors) -> dict[str, Array]:
            order.append(each.name)
            return {"y": inputs["x"]}

        session.answer = run

    for each in models:
        noted(each)
    line = Line(*models, steady=flat)
    asked = [line.ask(busy, row(number + 1)) for number in range(1000)]
    asked += [line.ask(each, row(number + 1)) for each in others for number in range(12)]
    line.run()
    assert all(each.right for each in asked)
    assert list("abcdabcd") == order[:8]
    assert {"a"} == set(order[8:])
    assert 125 == order.count("a")


def test_a_newcomer_is_next() -> None:
    """A model that was idle is before those that have just run, however many wait there."""
    first, second = models = [model(name=name, index=index, batch_sizes=[1]) for index, name in enumerate("ab")]
    line = Line(*models)
    line.ask(second, row(1))
    line.run()
    for number in range(10):
        line.ask(first, row(number + 1))
    line.batcher.turn()
    line.batcher.turn()
    asked = line.ask(second, row(1))
    line.batcher.turn()
    assert asked.right
    assert 2 == len(sizes(first))


@pytest.mark.parametrize(
    "made",
    [
        model(batch_sizes=None),
        model(batched=False),
        wide(axes={}),
        model(batch_sizes=None, axes={"n": [1, 2, 4]}),
    ],
    ids=["no-batch", "failed-the-proof", "free-axis", "declared-axis"],
)
def test_what_does_not_mix_runs_one_by_one(made: Model) -> None:
    """A model without a batch, one whose rows depend on each other and one with an axis that nobody declared: each alone."""
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(number + 1)) for number in range(5)]
    line.batcher.turn()
    assert [True, False, False, False, False] == [each.done for each in asked]
    line.run()
    assert all(each.right for each in asked)
    assert [1] * 5 == sizes(made)
    assert [[1], [2], [3], [4], [5]] == came(made)


def test_full() -> None:
    """There is nothing to wait for once the largest batch can be filled, or where nothing mixes."""
    many, alone = model(batch_sizes=[1, 4]), model(name="alone", index=1, batched=False)
    line = Line(many, alone)
    seen = [line.batcher.full]
    for number in range(4):
        line.ask(many, row(number + 1))
        seen.append(line.batcher.full)
    line.run()
    seen.append(line.batcher.full)
    line.ask(alone, row(1))
    seen.append(line.batcher.full)
    line.run()
    assert [False, False, False, False, True, False, True] == seen


def test_line_is_bounded() -> None:
    """One more than may wait is refused, with the bound, and may come again once a batch has run."""
    made = model()
    line = Line(made, most=3)
    for number in range(3):
        line.batcher.admit()
        line.ask(made, row(number + 1))
    with pytest.raises(BusyError, match=r"^3 requests are waiting in this worker, at most 3 may \(WARMFORK_MAX_QUEUE\)$"):
        line.batcher.admit()
    line.run()
    line.batcher.admit()


def test_requests_that_follow_at_once() -> None:
    """A request that asks again as soon as it is answered is in the next batch, and no greenlet is made for it."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    answers: list[float] = []

    def work() -> None:
        for value in (1.0, 2.0, 3.0):
            inputs = {"x": np.full((1, 3), value, np.float32)}
            answers.append(float(line.serving.infer(made, inputs, 1 << 62)["y"][0, 0]))

    for _ in range(4):
        line.tasks.start(work)
    line.run()
    assert [1.0] * 4 + [2.0] * 4 + [3.0] * 4 == answers
    assert [4, 4, 4] == sizes(made)
    assert 4 == line.tasks.count == len(line.tasks.idle)


def test_queueing_is_counted() -> None:
    """What each waited is counted, once for each."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    for number in range(3):
        line.ask(made, row(number + 1))
    line.run()
    assert 0 < line.counted()["queue_ns"] < 180e9
