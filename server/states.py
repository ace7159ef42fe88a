"""The states of a worker and the events that move it: the table is data, so that it can be printed and walked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class State(IntEnum):
    """Where one worker stands; the number is what the scoreboard holds."""

    EMPTY = 0
    FORKED = 1
    LOADING = 2
    WARMING = 3
    PROVING = 4
    WAITING = 5
    ACTIVE = 6
    STANDBY = 7
    DRAINING = 8
    FAILED = 9


class Event(IntEnum):
    """What can happen to a worker."""

    FORK = 1
    LOAD = 2
    WARM = 3
    PROVE = 4
    ARRIVE = 5
    OPEN = 6
    HOLD = 7
    LEAVE = 8
    FAIL = 9
    REAP = 10


class Role(IntEnum):
    """Whether a worker takes traffic once it is warm, or is held back."""

    ACTIVE = 0
    STANDBY = 1


class Phase(IntEnum):
    """Where the server as a whole stands."""

    STARTING = 0
    TRYING = 1
    LOADING = 2
    FORKING = 3
    BOOTING = 4
    SERVING = 5
    DRAINING = 6
    STOPPING = 7
    HANDED_OVER = 8
    """Another master serves, the one that this one started or that started this one; this one ends."""


BOOTING = (State.FORKED, State.LOADING, State.WARMING, State.PROVING, State.WAITING)
"""The states before a worker has been opened, in order."""

TABLE: Mapping[tuple[State, Event], State] = {
    (State.EMPTY, Event.FORK): State.FORKED,
    (State.FORKED, Event.LOAD): State.LOADING,
    (State.LOADING, Event.WARM): State.WARMING,
    (State.WARMING, Event.PROVE): State.PROVING,
    (State.PROVING, Event.ARRIVE): State.WAITING,
    (State.WAITING, Event.OPEN): State.ACTIVE,
    (State.WAITING, Event.HOLD): State.STANDBY,
    (State.STANDBY, Event.OPEN): State.ACTIVE,
    (State.ACTIVE, Event.LEAVE): State.DRAINING,
    (State.STANDBY, Event.LEAVE): State.DRAINING,
    **{(state, Event.FAIL): State.FAILED for state in BOOTING},
    **{(state, Event.REAP): State.EMPTY for state in State if state is not State.EMPTY},
}
"""Every move there is. Whatever is not here is a defect of ours and raises."""


class IllegalMoveError(Exception):
    """A move that the table does not have."""


def move(state: State, event: Event) -> State:
    """Return the state that `event` leads to from `state`; raise `IllegalMoveError` if the table has none."""
    try:
        return TABLE[state, event]
    except KeyError:
        message = f"worker state {state.name} has no move for {event.name}"
        raise IllegalMoveError(message) from None
