"""Standing back: in a thread that ends, so that the one that serves is as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.processes import fork_child
from server.scoreboard import now_ms
from server.warmup import polite
from server.warmup.polite import FULL_SPEED, LONGEST_REST, Polite, stand_back

LONG = 60_000


class Units:
    """Until when to be polite, and a pace for it."""

    def __init__(self) -> None:
        """Polite for a long time."""
        self.until = now_ms() + LONG
        self.pace = Polite(lambda: self.until, aside=True)


@pytest.fixture
def units() -> Iterator[Units]:
    """A pace that stands back."""
    made = Units()
    yield made
    made.pace.close()


def policies() -> set[int]:
    """How the threads of this process are scheduled."""
    return {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()}


def where() -> tuple[int, int]:
    """The thread that calls this, and how it is scheduled."""
    return threading.get_native_id(), os.sched_getscheduler(0)


def test_aside(units: Units) -> None:
    """Units run one after another in one thread that stands back; the calling thread does not."""
    first, second = units.pace.aside(where), units.pace.aside(where)

    assert first == second
    assert os.SCHED_IDLE == first[1]
    assert (threading.get_native_id(), os.SCHED_OTHER) == where()


def test_close(units: Units) -> None:
    """At the end no thread is left that stands back; what comes then is done here. Without a unit there was none."""
    before = threading.active_count()
    Units().pace.close()
    units.pace.aside(where)
    assert os.SCHED_IDLE in policies()

    units.pace.close()

    assert ({os.SCHED_OTHER}, before) == (policies(), threading.active_count())
    assert where() == units.pace.aside(where)


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_raises(units: Units, error: BaseException) -> None:
    """What a unit raises comes through as it is, and the next unit runs all the same."""

    def unit() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        units.pace.aside(unit)

    assert error is caught.value
    assert os.SCHED_IDLE == units.pace.aside(where)[1]


def test_time_is_up(units: Units) -> None:
    """After its time a unit runs in the calling thread, without a rest, and the other thread is gone; it may be cut short."""
    units.pace.aside(where)

    units.until = now_ms()

    assert where() == units.pace.aside(where)
    assert {os.SCHED_OTHER} == policies()


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each rest was, which takes no time; the processor has always just been another's."""
    slept: list[float] = []
    clock = Clock(slept.append)
    monkeypatch.setattr(polite, "time", clock)
    monkeypatch.setattr(polite, "waited", lambda: clock.now / 10)
    return slept


class Clock:
    """A clock on which each look is so many seconds after the last, so that every unit takes as long."""

    unit = 0.1

    def __init__(self, sleep: Callable[[float], object]) -> None:
        """Begin at 0."""
        self.now = 0.0
        self.sleep = sleep

    def monotonic(self) -> float:
        """Seconds."""
        self.now += self.unit
        return self.now


def test_rests(units: Units, rests: list[float]) -> None:
    """What must be done here is followed by a rest as long as it took, while there is time to be polite."""
    assert where() == units.pace.here(where)
    assert [pytest.approx(0.1)] == rests

    units.until = 0
    units.pace.here(where)

    assert 1 == len(rests)


@pytest.mark.parametrize("counted", [True, False])
def test_processor_for_everybody(units: Units, rests: list[float], monkeypatch: pytest.MonkeyPatch, *, counted: bool) -> None:
    """Who has not waited for a processor has kept none from others, and does not rest; where nobody counts it does."""
    monkeypatch.setattr(polite, "waited", lambda: 0.0)
    if not counted:
        monkeypatch.setattr(polite, "COUNTED", Path("/nowhere"))

    units.pace.here(where)

    assert counted == (not rests)


def test_longest_rest(units: Units, rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rest has a bound: after a load that took long there is nobody to relieve for as long again."""
    monkeypatch.setattr(Clock, "unit", 100.0)

    units.pace.here(where)

    assert [LONGEST_REST] == rests


def test_nothing_aside(rests: list[float]) -> None:
    """Where a model may not run in another thread nothing is done aside, but all of it rests."""
    pace = Polite(lambda: now_ms() + LONG, aside=False)

    assert where() == pace.aside(where)

    assert 1 == len(rests)
    pace.close()


def test_full_speed() -> None:
    """Where nobody serves everything is done here and at once, and no time is taken off."""
    assert (where(), where()) == (FULL_SPEED.aside(where), FULL_SPEED.here(where))
    assert FULL_SPEED.waited() == 0


def test_waited(units: Units) -> None:
    """What is counted is how long the thread of the unit has waited for a processor, by itself."""
    file = Path("/proc/thread-self/schedstat")
    if not file.exists():
        pytest.skip("this kernel does not count it")

    def unit() -> list[float]:
        before = int(file.read_text(encoding="ascii").split()[1]) / 1e9
        return [before, units.pace.waited(), int(file.read_text(encoding="ascii").split()[1]) / 1e9]

    seen = units.pace.aside(unit)

    assert sorted(seen) == seen


def test_clock(units: Units) -> None:
    """It goes on by itself, and does not go backwards whatever else runs on the machine."""
    for pace in (units.pace, FULL_SPEED):
        with pace.clock() as clock:
            looks = [clock() for _ in range(1000)]

        assert looks == sorted(looks)
        assert looks[0] < looks[-1]


def test_forks_stand_back() -> None:
    """A child that stands back has children that do; its parent does not."""

    def child() -> int:
        stand_back()
        return os.waitstatus_to_exitcode(os.waitpid(fork_child(lambda: os.sched_getscheduler(0)), 0)[1])

    assert os.SCHED_IDLE == os.waitstatus_to_exitcode(os.waitpid(fork_child(child), 0)[1])
    assert os.SCHED_OTHER == os.sched_getscheduler(0)


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox refuses to lower a priority, the work is done all the same."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    pace = Polite(lambda: now_ms() + LONG, aside=True)

    assert os.SCHED_OTHER == pace.aside(where)[1]
    pace.close()
