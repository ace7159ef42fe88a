"""The verdicts of the probes, from pages as the master and its workers leave them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from server import readiness
from server.notice import Notice
from server.readiness import Verdict
from server.scoreboard import NEVER, Scoreboard, Snapshot, now_ms, pack
from server.states import Phase, State

AHEAD = 60_000
SLOTS = 4


def page(
    *states: State, generation: int = 1, phase: Phase = Phase.SERVING, ahead_ms: int = AHEAD, master_ahead_ms: int | None = None
) -> Snapshot:
    """A page with one worker per state, pids 100, 101 …, all deadlines `ahead_ms` from now."""
    board = Scoreboard.create(SLOTS)
    board.set("generation", generation)
    board.set("active", len(states))
    board.enter(phase)
    if master_ahead_ms is not None:
        board.set("deadline_ms", now_ms() + master_ahead_ms)
    for index, state in enumerate(states):
        board.slots["word"][index] = pack(state, now_ms() + ahead_ms)
        board.slots["pid"][index] = 100 + index
    return board.snapshot()


def everyone(_: int) -> bool:
    """Nobody has ended."""
    return True


def nobody(_: int) -> bool:
    """All have ended."""
    return False


def all_but_the_first(pid: int) -> bool:
    """Worker 0 has ended."""
    return pid != 100


READY = Verdict(ready=True, reasons=())
TWO = (State.ACTIVE, State.ACTIVE)


@pytest.mark.parametrize(
    ("snapshot", "ready_min", "alive", "part"),
    [
        (page(*TWO), 1, everyone, None),
        (page(*TWO), 2, everyone, None),
        (page(State.ACTIVE, State.DRAINING, State.FAILED), 1, everyone, None),
        (page(State.ACTIVE, State.FORKED, phase=Phase.BOOTING), 1, everyone, None),
        (page(*TWO), 1, all_but_the_first, None),
        (page(*TWO), 3, everyone, "workers that take traffic: 2, must be at least 3"),
        (page(*TWO), 2, all_but_the_first, "worker 0 (pid 100) has ended"),
        (page(*TWO), 1, nobody, "workers that take traffic: 0, must be at least 1"),
        (page(*TWO, ahead_ms=-2000), 1, everyone, "worker 1 (pid 101) is 2.0 s past its deadline"),
        (page(*TWO, generation=0, phase=Phase.BOOTING), 1, everyone, "no generation has opened yet: booting for 0.0 s"),
        (page(*TWO, phase=Phase.DRAINING), 1, everyone, "the server is going away: draining for 0.0 s"),
        (page(*TWO, phase=Phase.STOPPING), 1, everyone, "the server is going away: stopping for 0.0 s"),
        (page(), 1, everyone, "workers that take traffic: 0, must be at least 1"),
        *((page(state), 1, everyone, "workers that take traffic: 0") for state in State if state is not State.ACTIVE),
    ],
)
def test_ready(snapshot: Snapshot, ready_min: int, alive: Callable[[int], bool], part: str | None) -> None:
    """Ready is open, not going away, and enough active workers whose deadline is ahead and whose process lives."""
    verdict = readiness.verdict(snapshot, ready_min, alive)

    assert (part is None) == verdict.ready
    assert (part or "") in "; ".join(verdict.reasons)
    assert verdict.ready == (not verdict.reasons)


def test_ready_is_forgotten_at_the_deadline() -> None:
    """The same page is ready before a deadline and not at it: nothing is remembered."""
    board = Scoreboard.create(1)
    board.set("generation", 1)
    deadline = now_ms() + AHEAD
    board.slots["word"][0] = pack(State.ACTIVE, deadline)
    before, at = (Snapshot(board.header[0].copy(), board.slots.copy(), moment) for moment in (deadline - 1, deadline))

    assert readiness.verdict(before, 1, everyone) == READY
    assert not readiness.verdict(at, 1, everyone).ready


@pytest.mark.parametrize(
    ("snapshot", "alive", "part"),
    [
        (page(), everyone, None),
        (page(*TWO, master_ahead_ms=AHEAD), everyone, None),
        (page(State.ACTIVE, ahead_ms=-5_000), everyone, None),
        (page(State.ACTIVE, ahead_ms=-15_000), nobody, None),
        (page(State.EMPTY, ahead_ms=-15_000), everyone, None),
        (page(generation=0, phase=Phase.BOOTING), everyone, None),
        (page(*TWO, master_ahead_ms=-3_000), everyone, "the master's loop is 3.0 s past its deadline"),
        (
            page(State.WARMING, ahead_ms=-15_000),
            everyone,
            "worker 0 (pid 100, warming) is 15.0 s past its deadline and still exists",
        ),
    ],
)
def test_live(snapshot: Snapshot, alive: Callable[[int], bool], part: str | None) -> None:
    """Not live is the master's loop being late, or a worker that exists 10 s after it should have ended; nothing else."""
    verdict = readiness.live(snapshot, alive)

    assert (part is None) == verdict.ready
    assert (part or "") in "; ".join(verdict.reasons)


def test_a_state_without_a_deadline_is_never_late() -> None:
    """The word for no deadline is ahead of every clock."""
    board = Scoreboard.create(1)
    board.set("generation", 1)
    board.slots["word"][0] = pack(State.ACTIVE, NEVER)

    assert readiness.verdict(board.snapshot(), 1, everyone) == READY
    assert readiness.live(board.snapshot(), everyone) == READY


def test_started_says_what_is_missing() -> None:
    """Before the first generation opens: phase and time, what the load is at, each worker, how many are proven."""
    board = Scoreboard.create(SLOTS)
    board.enter(Phase.BOOTING)
    board.set("phase_since_ns", time.monotonic_ns() - 3_000_000_000)
    board.set("active", 2)
    board.set("standby", 1)
    board.set("building", 1)
    for index, (state, doing) in enumerate(
        [(State.WARMING, b"digits/1, batch=8"), (State.WAITING, b""), (State.FAILED, b"digits/1: NaN")]
    ):
        board.slots["word"][index] = pack(state, NEVER)
        board.slots["generation"][index] = 1
        board.slots["doing"][index] = doing

    verdict = readiness.started(board.snapshot(), Notice(doing="loading digits/1", reasons=["worker 2 failed"]))

    assert not verdict.ready
    assert verdict.reasons == (
        "booting for 3.0 s",
        "loading digits/1",
        "workers proven: 1 of 3",
        "worker 0: warming, digits/1, batch=8",
        "worker 1: waiting",
        "worker 2: failed, digits/1: NaN",
        "worker 2 failed",
    )


@pytest.mark.parametrize("phase", list(Phase))
def test_started_stays(phase: Phase) -> None:
    """Once a generation has opened the start is over, whatever comes after."""
    assert readiness.started(page(phase=phase), Notice()) == READY


def test_text_that_is_being_written_can_be_read() -> None:
    """Half a character is shown as such and raises nothing."""
    assert readiness.text("é".encode()[:1]) == "�"
