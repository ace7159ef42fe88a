"""One inference at a time, a bounded line before it, and who waits too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from server.models.model import Model, Prepared
from server.models.shapes import Shape
from server.refusals import BusyError, LateError
from server.tensors import Array
from server.turnstile import Turnstile
from tests.unit.fakes import model

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 60.0
MODEL = model()
PART = Prepared({"x": np.zeros((1, 3), np.float32)}, (1,), (1,))


def reached(turnstile: Turnstile, waiting: int) -> None:
    """Come back once so many are in line."""
    while turnstile.waiting != waiting:
        threading.Event().wait(0.001)


def instant(_model: Model, parts: Sequence[Prepared], _shape: Shape, _queue_ns: int) -> list[dict[str, Array]]:
    """A batch that takes no time."""
    return [dict(part.inputs) for part in parts]


def ask(turnstile: Turnstile, ago: float = 0.0) -> dict[str, Array]:
    """One request that came `ago` seconds ago."""
    return turnstile.run(instant, MODEL, PART, time.monotonic_ns() - int(ago * 1e9))


def taken(turnstile: Turnstile) -> AbstractContextManager[None]:
    """The turn is held by another thread meanwhile."""

    @contextmanager
    def held() -> Iterator[None]:
        inside, go = threading.Event(), threading.Event()

        def execute(*_: object) -> list[dict[str, Array]]:
            inside.set()
            assert go.wait(LONG)
            return [{}]

        with ThreadPoolExecutor(1) as pool:
            holder = pool.submit(turnstile.run, execute, MODEL, PART, time.monotonic_ns())
            assert inside.wait(LONG)
            try:
                yield
            finally:
                go.set()
            assert {} == holder.result(LONG)

    return held()


def test_one_at_a_time() -> None:
    """However many threads come, one is inside, and all get their turn."""
    turnstile = Turnstile(100, LONG)
    inside = most = 0

    def execute(_model: Model, parts: Sequence[Prepared], _shape: Shape, _queue_ns: int) -> list[dict[str, Array]]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.0005)
        inside -= 1
        return [dict(part.inputs) for part in parts]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: turnstile.run(execute, MODEL, PART, time.monotonic_ns()), range(200)))
    assert [dict(PART.inputs)] * 200 == answers
    assert (1, 0) == (most, turnstile.waiting)


def test_what_is_run() -> None:
    """A part runs alone, in its own shape, and how long it waited is said."""
    turnstile = Turnstile(5, LONG)
    seen = []

    def execute(asked: Model, parts: Sequence[Prepared], shape: Shape, queue_ns: int) -> list[dict[str, Array]]:
        seen.append((asked, parts, shape))
        assert 0 <= queue_ns < LONG * 1e9
        return [{}]

    part = Prepared({}, (4, 7), (3, 7))
    turnstile.run(execute, MODEL, part, time.monotonic_ns())

    assert [(MODEL, [part], (4, 7))] == seen


def test_waiting_is_measured() -> None:
    """What a request waited for its turn is what is counted as waiting, to the moment at which it runs."""
    turnstile = Turnstile(5, LONG)
    waits = []

    def execute(_model: Model, _parts: Sequence[Prepared], _shape: Shape, queue_ns: int) -> list[dict[str, Array]]:
        waits.append((queue_ns, time.monotonic_ns()))
        return [{}]

    with ThreadPoolExecutor(1) as pool:
        before = time.monotonic_ns()
        with taken(turnstile):
            waiting = pool.submit(turnstile.run, execute, MODEL, PART, time.monotonic_ns())
            reached(turnstile, 1)
            seen = time.monotonic_ns()
            threading.Event().wait(0.02)
        waiting.result(LONG)

    ((queue_ns, ran),) = waits
    assert 0.02e9 <= ran - seen <= ran - before
    assert 0.02e9 - 1e6 <= queue_ns <= ran - before


def test_line_is_bounded() -> None:
    """One more than may wait is refused at once, with the bound; those in line are not disturbed."""
    turnstile = Turnstile(2, LONG)

    with ThreadPoolExecutor(2) as pool:
        with taken(turnstile):
            waiting = [pool.submit(ask, turnstile) for _ in range(2)]
            reached(turnstile, 2)
            with pytest.raises(
                BusyError, match=r"^2 requests are waiting in this worker, at most 2 may \(WARMFORK_MAX_QUEUE\)$"
            ) as busy:
                ask(turnstile)
            assert (503, 1) == (busy.value.status, busy.value.retry_after)
        assert [dict(PART.inputs)] * 2 == [each.result(LONG) for each in waiting]
    assert ask(turnstile)
    assert 0 == turnstile.waiting


def test_no_line() -> None:
    """With room for none, a request runs where nobody does and is refused where somebody does."""
    turnstile = Turnstile(0, LONG)
    with taken(turnstile), pytest.raises(BusyError, match="at most 0 may"):
        ask(turnstile)
    assert ask(turnstile)


def test_admit() -> None:
    """Nobody is refused before it would have to wait: a thread that comes may find the turn free by then."""
    turnstile = Turnstile(0, LONG)
    with taken(turnstile):
        turnstile.admit()


@pytest.mark.parametrize("ago", [0.0, 0.03, 10.0])
def test_late(ago: float) -> None:
    """Who waits past the limit, counted from when the request came, is refused and leaves the line."""
    turnstile = Turnstile(5, 0.05)
    with taken(turnstile):
        start = time.monotonic()
        with pytest.raises(LateError, match=r"^not answered within 0\.05 s \(WARMFORK_REQUEST_TIMEOUT\)$"):
            ask(turnstile, ago)
        assert time.monotonic() - start >= 0.05 - ago - 0.005
        assert 0 == turnstile.waiting


def test_turn_passes_on_after_an_error() -> None:
    """An inference that raises gives its turn back."""
    turnstile = Turnstile(0, LONG)

    def execute(*_: object) -> list[dict[str, Array]]:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            turnstile.run(execute, MODEL, PART, time.monotonic_ns())
    assert ask(turnstile)
