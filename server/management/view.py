"""What the management process looks at: the page, the settings, the processes of one master."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server import notice, readiness
from server.management.memory import MemoryReader
from server.notice import Notice
from server.processes import alive
from server.readiness import Verdict
from server.scoreboard import Scoreboard, Snapshot

LOOKS = 5
"""How often a page that changes is looked at before a no counts."""


@dataclass(frozen=True, slots=True)
class View:
    """One view per process; its methods are safe to call from several threads."""

    board: Scoreboard
    ready_min: int
    master: int
    """The process id of the master."""
    memory: MemoryReader

    def alive(self, pid: int) -> bool:
        """Whether `pid` is a living child of the master."""
        return alive(pid, self.master)

    def ready(self) -> Verdict:
        """The verdict of `/readyz`."""
        return self.judge(self.board.glance)[1]

    def judge(self, look: Callable[[], Snapshot]) -> tuple[Snapshot, Verdict]:
        """A look at the page, and the verdict of `/readyz` on that.

        A no counts only where the page says afterwards what it said before: while we look at processes one may have left in whose
        place another takes traffic by now.
        """
        now = look()
        for _ in range(LOOKS):
            snapshot, verdict = now, readiness.verdict(now, self.ready_min, self.alive)
            if verdict.ready or (now := look()).workers == snapshot.workers:
                break
        return snapshot, verdict

    def live(self) -> Verdict:
        """The verdict of `/livez`."""
        return readiness.live(self.board.glance(), self.alive)

    def started(self) -> Verdict:
        """The verdict of `/startupz`."""
        return readiness.started(self.board.glance(), self.notice())

    def notice(self) -> Notice:
        """What the master says in words."""
        return notice.read(self.board)
