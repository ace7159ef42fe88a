"""One inference at a time, a bounded line before it, and who waits too long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.refusals import BusyError, LateError
from server.turnstile import HUNG_SECONDS, Turnstile

LONG = 60.0


def reached(turnstile: Turnstile, waiting: int) -> None:
    """Come back once so many are in line."""
    while turnstile.waiting != waiting:
        threading.Event().wait(0.001)


def test_one_at_a_time() -> None:
    """However many threads come, one is inside, and all get their turn."""
    turnstile = Turnstile(100, LONG)
    inside = most = 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with turnstile.enter(time.monotonic_ns()):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.0005)
            inside -= 1

    with ThreadPoolExecutor(16) as pool:
        assert 200 == len(list(pool.map(enter, range(200))))
    assert (1, 0, 0) == (most, turnstile.waiting, turnstile.entered_ns)


def test_line_is_bounded() -> None:
    """One more than may wait is refused at once, with the bound; those in line are not disturbed."""
    turnstile = Turnstile(2, LONG)

    def enter() -> str:
        with turnstile.enter(time.monotonic_ns()):
            return "in"

    with ThreadPoolExecutor(2) as pool:
        with turnstile.enter(time.monotonic_ns()):
            waiting = [pool.submit(enter) for _ in range(2)]
            reached(turnstile, 2)
            with pytest.raises(
                BusyError, match=r"^2 requests are waiting in this worker, at most 2 may \(WARMFORK_MAX_QUEUE\)$"
            ) as busy:
                enter()
            assert (503, 1) == (busy.value.status, busy.value.retry_after)
        assert ["in", "in"] == [each.result(LONG) for each in waiting]
    assert "in" == enter()
    assert 0 == turnstile.waiting


def test_no_line() -> None:
    """With room for none, a request runs where nobody does and is refused where somebody does."""
    turnstile = Turnstile(0, LONG)
    first, second = turnstile.enter(time.monotonic_ns()), turnstile.enter(time.monotonic_ns())
    with first, pytest.raises(BusyError, match="at most 0 may"), second:
        pass
    with turnstile.enter(time.monotonic_ns()):
        pass


@pytest.mark.parametrize("ago", [0.0, 0.03, 10.0])
def test_late(ago: float) -> None:
    """Who waits past the limit, counted from when the request came, is refused and leaves the line."""
    turnstile = Turnstile(5, 0.05)
    with turnstile.enter(time.monotonic_ns()):
        start = time.monotonic()
        with (
            pytest.raises(LateError, match=r"^not answered within 0\.05 s \(WARMFORK_REQUEST_TIMEOUT\)$"),
            turnstile.enter(time.monotonic_ns() - int(ago * 1e9)),
        ):
            pass
        assert time.monotonic() - start >= 0.05 - ago - 0.005
        assert 0 == turnstile.waiting


def test_turn_passes_on_after_an_error() -> None:
    """An inference that raises gives its turn back."""
    turnstile = Turnstile(0, LONG)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turnstile.enter(time.monotonic_ns()):
            _ = 1 / 0
    assert 0 == turnstile.entered_ns


@pytest.mark.parametrize(("patience", "seconds"), [(0.02, HUNG_SECONDS + 0.04), (30, HUNG_SECONDS + 60)])
def test_hung(patience: float, seconds: float) -> None:
    """An inference far past the limit of a request is seen from outside, while it runs; one that is merely slow is not."""
    turnstile = Turnstile(1, patience)
    assert turnstile.hung() is False
    with turnstile.enter(time.monotonic_ns()):
        for ago, hung in ((0, False), (patience, False), (seconds - 1, False), (seconds, True), (3600, True)):
            turnstile.entered_ns = time.monotonic_ns() - int(ago * 1e9)
            assert turnstile.hung() is hung
    assert turnstile.hung() is False
