"""Whose turn it is to warm: everybody's at a start, a few at a time beside those that serve, and nobody waits for the dead."""

from __future__ import annotations

import os
import time

from server.barrier import Point
from server.master.slots import Slots
from server.master.turns import MISSED_SECONDS, Turns
from server.scoreboard import Scoreboard, now_ms
from server.states import Event, Role
from server.warmup.polite import ALONE

BOOT = 100.0
POLITE = 20.0
WAY = (Event.LOAD, Event.WARM, Event.PROVE, Event.ARRIVE, Event.OPEN)


class Scene:
    """Slots, and whose turn it is in them."""

    def __init__(self, serving: int = 1) -> None:
        """So many workers of generation 1 serve."""
        self.slots = Slots(Scoreboard.create(20), BOOT)
        self.board = self.slots.board
        self.board.set("active", max(serving, 1))
        self.turns = Turns(self.slots, POLITE)
        for _ in range(serving):
            self.open(self.fork(1))

    def fork(self, generation: int) -> int:
        """One worker more."""
        slot = self.slots.take(generation, Role.ACTIVE)
        assert slot is not None
        return slot

    def open(self, slot: int) -> None:
        """A worker boots, and serves."""
        self.board.slots["turn"][slot] = ALONE
        self.board.slots["barrier"][slot] = Point.REHEARSED
        for event in WAY:
            self.board.move(slot, event)

    def given(self, *slots: int) -> list[bool]:
        """Give turns; who of some has had one now."""
        self.turns.give()
        return [bool(self.board.slots["turn"][slot]) for slot in slots]

    def rung(self, slot: int) -> bool:
        """Whether a worker has been woken."""
        try:
            return bool(os.eventfd_read(self.slots.barrier.bells[slot]))
        except BlockingIOError:
            return False


def test_alone() -> None:
    """Where nobody serves it is everybody's turn at once, at full speed."""
    scene = Scene(serving=0)
    slots = [scene.fork(1) for _ in range(3)]

    assert [True] * 3 == scene.given(*slots)

    assert [ALONE] * 3 == [scene.board.slots["turn"][slot] for slot in slots]
    assert not scene.turns.waiting


def test_one_at_a_time() -> None:
    """Beside those that serve the next begins when the one before has come to its end, the oldest first; each is woken once."""
    scene = Scene(serving=2)
    first, second, third = (scene.fork(2) for _ in range(3))

    assert [True, False, False] == scene.given(first, second, third)
    assert scene.turns.waiting
    until = int(scene.board.slots["turn"][first]) - now_ms()
    assert POLITE * 1000 - 1000 < until <= POLITE * 1000
    scene.board.slots["barrier"][first] = Point.PROVEN
    assert [True, False, False] == scene.given(first, second, third)
    scene.board.slots["barrier"][first] = Point.REHEARSED
    assert [True, True, False] == scene.given(first, second, third)

    assert [True, True, False] == [scene.rung(slot) for slot in (first, second, third)]
    assert [True, True, False] == scene.given(first, second, third)
    assert not scene.rung(first)


def test_end_in_a_turn() -> None:
    """A worker that ends in its turn blocks nobody; the one that comes in its place waits behind the others."""
    scene = Scene()
    first, second = scene.fork(2), scene.fork(2)
    assert [True, False] == scene.given(first, second)

    scene.slots.free(first)
    assert first == scene.fork(2)

    assert [False, True] == scene.given(first, second)


def test_time_is_up() -> None:
    """One that is past its time, since it hangs or is large, is waited for no longer."""
    scene = Scene()
    first, second = scene.fork(2), scene.fork(2)
    scene.turns.give()

    scene.board.slots["turn"][first] = now_ms() - 1

    assert [True, True] == scene.given(first, second)


def test_replacement() -> None:
    """A worker of the generation that serves does not wait behind those of one that comes."""
    scene = Scene(serving=2)
    coming = [scene.fork(2) for _ in range(2)]
    scene.turns.give()

    assert [True, False, True] == scene.given(*coming, scene.fork(1))


def test_missed() -> None:
    """Who replaces a worker that took traffic is polite for a moment, who comes besides those that serve for as long as any."""
    scene = Scene(serving=2)
    scene.slots.free(0)
    missed, more = scene.fork(1), scene.fork(1)
    scene.turns.give()
    scene.board.slots["barrier"][missed] = Point.REHEARSED
    scene.turns.give()

    left = [(int(scene.board.slots["turn"][slot]) - now_ms()) / 1000 for slot in (missed, more)]
    assert 0 < left[0] <= MISSED_SECONDS < POLITE - 1 < left[1] <= POLITE


def test_a_quarter() -> None:
    """Of many workers a quarter warms at a time."""
    scene = Scene(serving=8)
    slots = [scene.fork(2) for _ in range(4)]

    assert [True, True, False, False] == scene.given(*slots)


def test_nobody_serves_any_more() -> None:
    """When the last that served ends, nobody is polite and nobody waits any more."""
    scene = Scene()
    slots = [scene.fork(2) for _ in range(2)]
    assert [True, False] == scene.given(*slots)
    scene.slots.free(0)

    scene.turns.give()

    assert [ALONE, ALONE] == [scene.board.slots["turn"][slot] for slot in slots]


def test_back_off() -> None:
    """A worker that waits out its back-off has no turn to lose: the others go on meanwhile."""
    scene = Scene()
    scene.slots.backoff.failures[0] = 2
    late, other = scene.fork(1), scene.fork(1)
    scene.board.slots["failures"][other] = 0

    assert [False, True] == scene.given(late, other)

    scene.board.slots["barrier"][other] = Point.REHEARSED
    assert [False] == scene.given(late)
    scene.board.slots["forked_ns"][late] = time.monotonic_ns() - 2_100_000_000
    assert [True] == scene.given(late)
