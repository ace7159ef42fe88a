"""What the management process looks at: the page, the settings, the processes of one master."""

from __future__ import annotations

from dataclasses import dataclass

from server import notice, readiness
from server.management.memory import MemoryReader
from server.notice import Notice
from server.processes import alive
from server.readiness import Verdict
from server.scoreboard import Scoreboard, Snapshot


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

    def ready(self, snapshot: Snapshot | None = None) -> Verdict:
        """The verdict of `/readyz`."""
        return readiness.verdict(snapshot or self.board.glance(), self.ready_min, self.alive)

    def live(self) -> Verdict:
        """The verdict of `/livez`."""
        return readiness.live(self.board.glance(), self.alive)

    def started(self) -> Verdict:
        """The verdict of `/startupz`."""
        return readiness.started(self.board.glance(), self.notice())

    def notice(self) -> Notice:
        """What the master says in words."""
        return notice.read(self.board)
