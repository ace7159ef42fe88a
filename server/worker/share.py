"""Kept connections among the workers: clients with pools stay with the workers they know, unless those let them go."""

from __future__ import annotations

from server.scoreboard import Scoreboard, unpack
from server.states import State

SLACK = 1.25
"""How many times its share a worker may have, or its share may be what it has, before connections are let go."""


class Share:
    """What one worker has of them, and should have."""

    def __init__(self, board: Scoreboard, slot: int) -> None:
        """Look after the worker of `slot`."""
        self.board = board
        self.slot = slot
        self.words: dict[int, int] = {}
        """By slot, what the page said when this worker last let any go; it changes as often as that worker's loop turns."""

    def surplus(self, own: int) -> int:
        """How many of `own` connections this worker should let go, so that every active worker has its share.

        Those that have most let go first, and all of them together no more than others lack that can take them: whoever accepts
        what was let go may have enough already, so it takes some turns. One whose loop has not turned since, in a long batch or
        a hang, has taken nothing: what was let go for it came back, and is not let go again.
        """
        slots, slot = self.board.slots, self.slot
        slots["connections"][slot] = own
        words = {index: word for index, word in enumerate(slots["word"].tolist()) if unpack(word)[0] is State.ACTIVE}
        if slot not in words or len(words) == 1:
            return 0
        connections = slots["connections"].tolist()
        counts: dict[int, int] = {index: connections[index] for index in words}
        total, most, fewest = sum(counts.values()), max(counts.values()), min(counts.values())
        least, share = total // len(counts), -(-total // len(counts))
        if most > max(SLACK * share, share + 1):
            level = share
        elif fewest == 0 < least or least > max(SLACK * fewest, fewest + 1):
            level = least  # however little the others have above it, all of it together may be what one lacks
        else:
            return 0
        lacking = sum(max(level - count, 0) for index, count in counts.items() if self.words.get(index) != words[index])
        before = sum(max(count - level, 0) for index, count in counts.items() if (count, index) > (own, slot))
        surplus = max(min(own - level, lacking - before), 0)
        if surplus:
            self.words = words
        return surplus
