"""Kept connections among the workers: clients with pools stay with the workers they know, unless those let them go."""

from __future__ import annotations

from server.scoreboard import Scoreboard, unpack
from server.states import State

SLACK = 1.25
"""How many times its share a worker may have before it lets connections go; then it comes down to its share."""


def surplus(board: Scoreboard, slot: int, own: int) -> int:
    """How many of `own` connections the worker of `slot` should let go, so that every active worker has its share."""
    board.slots["connections"][slot] = own
    active = [unpack(word)[0] is State.ACTIVE for word in board.slots["word"].tolist()]
    others = sum(active) - 1
    if others < 1 or not active[slot]:
        return 0
    total = sum(count for count, here in zip(board.slots["connections"].tolist(), active, strict=True) if here)
    share = -(-total // (others + 1))
    return own - share if own > max(SLACK * share, share + 1) else 0
