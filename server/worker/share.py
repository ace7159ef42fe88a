"""Kept connections among the workers: clients with pools stay with the workers they know, unless those let them go."""

from __future__ import annotations

from server.scoreboard import Scoreboard, unpack
from server.states import State

SLACK = 1.25
"""How many times its share a worker may have before it lets connections go; as many times less than that is too few for one."""


def surplus(board: Scoreboard, slot: int, own: int) -> int:
    """How many of `own` connections the worker of `slot` should let go, so that every active worker has its share."""
    board.slots["connections"][slot] = own
    active = [unpack(word)[0] is State.ACTIVE for word in board.slots["word"].tolist()]
    counts = [count for count, here in zip(board.slots["connections"].tolist(), active, strict=True) if here]
    if len(counts) < 2 or not active[slot]:  # noqa: PLR2004 - there is nobody else
        return 0
    least, share = sum(counts) // len(counts), -(-sum(counts) // len(counts))
    if own > max(SLACK * share, share + 1):
        return own - share
    # However little above its share each of the others is, all of it together may be what one lacks.
    return int(own > least > SLACK * min(counts))
