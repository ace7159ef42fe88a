"""Whose turn it is to load and warm: everybody's where nobody serves, else a few at a time, and each politely for a while."""

from __future__ import annotations

from collections.abc import Callable

from server.barrier import Point
from server.master import backoff
from server.master.slots import Slots
from server.scoreboard import now_ms
from server.states import BOOTING, State
from server.warmup.polite import ALONE

MISSED_SECONDS = 2.0
"""How long a worker is polite that is missed: it replaces one that took traffic, and needs few runs beside those that serve."""
AT_ONCE = 4
"""Of so many workers one warms at a time, at least one: a reload takes about so many boots, however many workers there are."""


class Turns:
    """What a slot's `turn` says: 0 while it is to come, then `ALONE`, or until when its worker is polite.

    All is computed from the page, so that a worker that dies in its turn is nobody's concern. One that is past its time is no
    longer waited for: it may hang, which its boot deadline sees to.
    """

    def __init__(self, slots: Slots, longest: float, behind: Callable[[], bool] = lambda: False) -> None:
        """Give turns to the workers in `slots`, each polite for up to `longest` seconds (`Settings.polite_seconds`).

        `behind` says whether all of them boot behind another server's.
        """
        self.slots = slots
        self.longest = longest
        self.behind = behind
        self.board = slots.board

    @property
    def booting(self) -> list[int]:
        """The slots of workers that boot, those that have waited longest first."""
        # PERF: numpy's own search takes a quarter of a millisecond, in each turn of the master's loop beside those that serve.
        found = [index for index, state in enumerate(self.board.states().tolist()) if state in BOOTING]
        return sorted(found, key=lambda index: int(self.board.slots["forked_ns"][index]))

    @property
    def waiting(self) -> bool:
        """Whether a worker's turn is still to come."""
        return any(not self.board.slots["turn"][index] for index in self.booting)

    def give(self) -> None:
        """Give all turns that are due. Each generation has its own: who replaces a worker does not wait for a reload."""
        slots, booting, now = self.board.slots, self.booting, now_ms()
        if not self.behind() and not (self.board.states() == State.ACTIVE).any():
            for index in booting:
                self._give(index, ALONE)
            return
        most = max(self.board.get("active") // AT_ONCE, 1)
        for generation in {int(slots["generation"][index]) for index in booting}:
            mine = [index for index in booting if slots["generation"][index] == generation]
            warming = sum(slots["turn"][index] > now and slots["barrier"][index] < Point.REHEARSED for index in mine)
            due = [index for index in mine if not slots["turn"][index] and self._begun_ms(index) <= now]
            for index in due[: max(most - warming, 0)]:
                self._give(index, now + int(self._polite(index) * 1000))

    def _polite(self, index: int) -> float:
        """How many seconds a worker is polite."""
        return min(self.longest, MISSED_SECONDS) if self.board.slots["missed"][index] else self.longest

    def _begun_ms(self, index: int) -> int:
        """When the back-off of a worker is over, which it waits out before anything else."""
        slot = self.board.slots[index]
        return int(slot["forked_ns"]) // 1_000_000 + int(backoff.seconds(int(slot["failures"])) * 1000)

    def _give(self, index: int, turn: int) -> None:
        if self.board.slots["turn"][index] != turn:
            self.board.slots["turn"][index] = turn
            self.slots.barrier.wake(index)
