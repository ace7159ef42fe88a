"""Kept connections among the workers: clients with pools stay with the workers they know, unless those let them go."""

from __future__ import annotations

from server.scoreboard import Scoreboard, now_ms, unpack
from server.states import State

SLACK = 1.25
"""How many times its share a worker may have, or its share may be what it has, before connections are let go."""
STILL_SECONDS = 1.0
"""A worker whose loop has not turned for so long, in a long batch or a hang, takes no connections: none are let go for it."""


def surplus(board: Scoreboard, slot: int, own: int, timeout: float) -> int:
    """How many of `own` connections the worker of `slot` should let go, so that every active worker has its share.

    Those that have most let go first, and all of them together no more than others lack: whoever accepts what was let go may
    have enough already, so it takes some turns. One that stands still neither lets go nor lacks any, yet what it has counts: the
    shares of all others are the same in the middle of its batch and after it. `timeout`: how many seconds after its last turn a
    worker's deadline is.
    """
    board.slots["connections"][slot] = own
    turned = now_ms() + int((timeout - STILL_SECONDS) * 1000)
    words = [unpack(word) for word in board.slots["word"].tolist()]
    active = [index for index, (state, _) in enumerate(words) if state is State.ACTIVE]
    if slot not in active or active == [slot]:
        return 0
    awake = [index for index in active if words[index][1] >= turned]
    connections = board.slots["connections"].tolist()
    counts: dict[int, int] = {index: connections[index] for index in active}
    total, most, fewest = sum(counts.values()), max(counts.values()), min(counts.values())
    least, share = total // len(counts), -(-total // len(counts))
    if most > max(SLACK * share, share + 1):
        level = share
    elif fewest == 0 < least or least > max(SLACK * fewest, fewest + 1):
        level = least  # however little the others have above it, all of it together may be what one lacks
    else:
        return 0
    lacking = sum(max(level - counts[index], 0) for index in awake)
    before = sum(max(counts[index] - level, 0) for index in awake if (counts[index], index) > (own, slot))
    return max(min(own - level, lacking - before), 0)
