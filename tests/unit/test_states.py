"""The states of a worker: every pair of state and event, and what must be true of the table as a whole."""

from __future__ import annotations

import itertools

import pytest

from server.states import BOOTING, TABLE, Event, IllegalMoveError, State, move

MOVES = """
    EMPTY FORK FORKED
    FORKED LOAD LOADING
    LOADING WARM WARMING
    WARMING PROVE PROVING
    PROVING ARRIVE WAITING
    WAITING OPEN ACTIVE
    WAITING HOLD STANDBY
    STANDBY OPEN ACTIVE
    ACTIVE LEAVE DRAINING
    STANDBY LEAVE DRAINING
    FORKED FAIL FAILED
    LOADING FAIL FAILED
    WARMING FAIL FAILED
    PROVING FAIL FAILED
    WAITING FAIL FAILED
    FORKED REAP EMPTY
    LOADING REAP EMPTY
    WARMING REAP EMPTY
    PROVING REAP EMPTY
    WAITING REAP EMPTY
    ACTIVE REAP EMPTY
    STANDBY REAP EMPTY
    DRAINING REAP EMPTY
    FAILED REAP EMPTY
"""
EXPECTED = {(State[state], Event[event]): State[to] for state, event, to in (line.split() for line in MOVES.strip().splitlines())}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    """Each pair leads where it is expected to, or is refused by name."""
    if (state, event) in EXPECTED:
        assert EXPECTED[state, event] is move(state, event)
    else:
        with pytest.raises(IllegalMoveError, match=f"^worker state {state.name} has no move for {event.name}$"):
            move(state, event)


def test_traffic_only_after_proof() -> None:
    """A worker cannot take traffic unless it has passed every state of the boot, in order."""
    ways = {state: {before for (before, _), after in TABLE.items() if after is state} for state in State}

    assert {State.WAITING, State.STANDBY} == ways[State.ACTIVE]
    assert {State.WAITING} == ways[State.STANDBY]
    for before, state in itertools.pairwise((State.EMPTY, *BOOTING)):
        assert {before} == ways[state]


def test_nobody_is_stuck() -> None:
    """From every state a slot can be taken back, and every state can be reached."""
    assert set(State) - {State.EMPTY} == {state for state in State if TABLE.get((state, Event.REAP)) is State.EMPTY}
    assert set(State) == set(TABLE.values())


def test_numbers() -> None:
    """A state fits into the eighth of the word that it has; a page of zeros is a page of empty slots."""
    assert State(0) is State.EMPTY
    assert all(0 <= state < 1 << 8 for state in State)
    assert list(range(len(State))) == sorted(State)  # they index the seconds per state
