"""What goes wrong in a batch, and with whom: the bad one alone fails; the late are told; the gone are not run."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pytest

from server.models.model import Model, Prepared
from server.refusals import AbandonedError, BusyError, LateError, ModelFailedError
from server.tensors import Array, Tensors
from tests.unit.fakes import model
from tests.unit.parked import LONG, Line, came, row, sizes

SIZES = [1, 2, 4, 8]
BAD = 13.0


class PanicError(BaseException):
    """As a library in Rust raises it: no `Exception`."""


def picky(error: BaseException, **toml: Any) -> Model:
    """A model that gives back what it gets, but raises for a row that is bad."""

    def run(inputs: Tensors) -> dict[str, Array]:
        if (inputs["x"] == BAD).any():
            raise error
        return {"y": inputs["x"]}

    return model(run, **{"batch_sizes": SIZES, **toml})


def flat(*_: object) -> float:
    """Every size takes as long, so that all that fit share a batch."""
    return 5.0


@pytest.mark.parametrize("bad", [[0], [7], [3], [2, 5], [0, 1, 2, 3, 4, 5, 6, 7], []])
def test_the_bad_one_alone_fails(bad: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A batch that fails is halved until whoever is to blame is alone: the others have their answers, in declared shapes."""
    made = picky(ValueError("thirteen"))
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(BAD if place in bad else 100 + place)) for place in range(8)]

    with caplog.at_level(logging.ERROR):
        line.batcher.turn()

    for place, each in enumerate(asked):
        assert (place not in bad) == each.right
        assert (place in bad) == isinstance(each.error, ModelFailedError)
    assert set(sizes(made)) <= set(SIZES)
    assert len(bad) == caplog.text.count("model m/1 failed on a request")
    assert len(sizes(made)) <= 1 + 2 * 3 * max(len(bad), 1)
    assert (8 - len(bad), 0) == (line.counted()["rows"], line.counted()["cold"])
    assert 0 == line.batcher.waiting


@pytest.mark.parametrize("counts", [[3, 1, 2, 2], [5, 3], [1, 7], [2, 2, 3, 1]])
def test_halves_of_requests_of_several_rows(counts: list[int]) -> None:
    """A request of many rows, one of them bad, fails whole; the others of its batch do not."""
    made = picky(ValueError("thirteen"))
    for place in range(len(counts)):
        line = Line(made, steady=flat)
        given = [row(100 * number + 100, count) for number, count in enumerate(counts)]
        given[place][-1] = BAD
        asked = [line.ask(made, each) for each in given]
        line.run()
        assert [number != place for number in range(len(counts))] == [each.right for each in asked]
        assert isinstance(asked[place].error, ModelFailedError)


def test_a_bad_part_of_a_large_request() -> None:
    """A request of many parts fails by one of them, and the parts after it are not run."""
    made = picky(ValueError("thirteen"))
    line = Line(made, steady=flat)
    given = row(100, 30)
    given[9] = BAD
    asked = line.ask(made, given)
    line.run()
    assert isinstance(asked.error, ModelFailedError)
    assert [8, 8] == sizes(made)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("hidden"), BusyError),
        (PanicError("hidden"), ModelFailedError),
        (GeneratorExit(), ModelFailedError),
        (SystemExit(3), ModelFailedError),
        (KeyboardInterrupt(), ModelFailedError),
        (StopIteration(), ModelFailedError),
    ],
)
def test_whatever_a_model_raises(error: BaseException, kind: type[BaseException]) -> None:
    """A model that raises what would end a process, or a greenlet, fails for that request; the loop and the others go on."""
    made = picky(error)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(value)) for value in (1, BAD, 3)]

    line.run()

    assert [True, False, True] == [each.right for each in asked]
    assert type(asked[1].error) is kind
    assert "hidden" not in str(asked[1].error)
    again = line.ask(made, row(5))
    line.run()
    assert again.right


def test_an_answer_with_too_few_rows() -> None:
    """A model that loses rows has no answer for whoever would get them, and nobody gets another's."""
    made = model(lambda inputs: {"y": inputs["x"][:2]}, batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(number + 1)) for number in range(4)]
    line.run()
    for each in asked:
        assert each.right or isinstance(each.error, ModelFailedError)
    assert any(each.error for each in asked)


@pytest.mark.parametrize("outputs", [{}, {"z": np.zeros((8, 3), np.float32)}])
def test_an_answer_without_the_output(outputs: dict[str, Array]) -> None:
    """A model that gives something else fails for each, and the line goes on."""
    made = model(lambda _: outputs, batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(number + 1)) for number in range(4)]
    line.run()
    assert [ModelFailedError] * 4 == [type(each.error) for each in asked]
    assert 0 == line.batcher.waiting


def test_late_while_waiting() -> None:
    """Who has waited for too long is told so at the next turn and not run, whatever its place in the line."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(number + 1), ago) for number, ago in enumerate((0, LONG + 1, 1, LONG + 5, LONG - 10))]

    line.batcher.turn()

    assert [True, False, True, False, True] == [each.right for each in asked]
    for each in (asked[1], asked[3]):
        assert isinstance(each.error, LateError)
        assert "not answered within 60 s (WARMFORK_REQUEST_TIMEOUT)" == str(each.error)
    assert [[1, 3, 5]] == came(made)
    assert 0 == line.batcher.waiting


def test_late_though_its_model_has_no_turn() -> None:
    """The late of a model whose batch runs elsewhere are told as well: nothing of theirs has to end for it."""
    made = model(batch_sizes=SIZES)
    line = Line(made)
    asked = line.ask(made, row(1), LONG + 1)
    line.batcher.queues[id(made)].running = True
    line.batcher.turn()
    assert isinstance(asked.error, LateError)
    assert (0, []) == (line.batcher.waiting, sizes(made))


def test_late_in_time() -> None:
    """The moment at which somebody is late is not forgotten when older ones have been answered."""
    made = model(batch_sizes=[1])
    line = Line(made)
    line.batcher.limit(100, 0.05)
    first = line.ask(made, row(1))
    line.batcher.turn()
    second = line.ask(made, row(2))
    line.batcher.queues[id(made)].running = True
    end = time.monotonic() + LONG
    while not second.done:
        line.loop.turn(0.005)
        line.batcher.turn()
        assert time.monotonic() < end
    assert first.right
    assert isinstance(second.error, LateError)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_gone_are_not_run(place: int) -> None:
    """A client that left is dropped from the line, and nobody else notices."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = [line.ask(made, row(number + 1)) for number in range(3)]
    line.abandon(asked[place])
    assert isinstance(asked[place].error, AbandonedError)
    assert 2 == line.batcher.waiting

    line.run()

    others = [number for number in range(3) if number != place]
    assert all(asked[number].right for number in others)
    assert [[number + 1 for number in others]] == came(made)


def test_all_are_gone() -> None:
    """A line that everybody has left has nothing to run."""
    made = model()
    line = Line(made)
    for each in [line.ask(made, row(number + 1)) for number in range(3)]:
        line.abandon(each)
    assert (0, False, False) == (line.batcher.waiting, line.batcher.ready, line.batcher.full)
    line.batcher.turn()
    assert [] == sizes(made)


def test_gone_between_the_parts() -> None:
    """A large request whose client leaves in the middle runs no further."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    asked = line.ask(made, row(1, 20))
    line.batcher.turn()
    assert (1, False) == (line.batcher.waiting, asked.done)
    line.abandon(asked)
    line.run()
    assert [8] == sizes(made)


def test_what_is_late_after_its_run() -> None:
    """A batch that ends past the limit of some is an answer for the others only."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    line.batcher.limit(100, 2 * LONG)  # so that the line itself is not what refuses it
    asked, other = line.ask(made, row(1), LONG + 1), line.ask(made, row(2))
    line.run()
    assert [[1, 2]] == came(made)
    assert isinstance(asked.error, LateError)
    assert other.right


def test_the_turn_of_a_model_that_fails() -> None:
    """A model all of whose batches fail takes its turns as any other."""
    bad, good = picky(ValueError(), name="bad"), model(name="good", index=1, batch_sizes=SIZES)
    line = Line(bad, good, steady=flat)
    failing = [line.ask(bad, row(BAD)) for _ in range(16)]
    asked = [line.ask(good, row(number + 1)) for number in range(8)]
    line.batcher.turn()
    line.batcher.turn()
    assert all(each.right for each in asked)
    line.run()
    assert all(isinstance(each.error, ModelFailedError) for each in failing)


def test_a_part_is_what_was_asked() -> None:
    """What comes back for a part is its own, also straight from the line."""
    made = model(batch_sizes=SIZES)
    line = Line(made, steady=flat)
    got: list[float] = []
    for value in (1.0, 2.0):
        part = Prepared({"x": row(value).astype(np.float32)}, (1,), (1,))

        def work(part: Prepared = part) -> None:
            answer = line.batcher.run(line.serving.execute, made, part, time.monotonic_ns())
            got.append(float(answer["y"][0, 0]))

        line.tasks.start(work)
    line.run()
    assert [1.0, 2.0] == got
