"""What the end of a worker means: it is replaced, its generation is refused, or the server has nothing to serve."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

from server.exits import ExitError, ResourceError, UnshareableError
from server.master.roster import Assignment, End
from server.master.succession import Succession
from server.states import State

FIRST_KILLS = 3
"""Workers of the first generation that may be killed before the server gives up: memory is missing."""

_log = logging.getLogger("gunicorn.error")


class Losses:
    """Decides, end by end, while the server is not going away itself."""

    def __init__(self, succession: Succession, halt: Callable[[ExitError], NoReturn]) -> None:
        """Look at what serves and what comes in `succession`; `halt` ends the server."""
        self.succession = succession
        self.workforce = succession.workforce
        self.words = succession.words
        self.halt = halt
        self.kills = 0

    def ended(self, assignment: Assignment, end: End | None) -> None:
        """A worker that had `assignment` has ended, as `end` says; None for one that never had a slot."""
        succession = self.succession
        leaving = assignment.generation not in (succession.serving, succession.coming)
        if assignment.retired or leaving:
            succession.forget(assignment.generation)
        elif end is None:
            self._refused(assignment)
        elif assignment.generation is succession.coming:
            self._lost(assignment, end)
        elif end.booting and succession.replaced:
            succession.take_back(end.error)
        elif not end.blameless:
            self._replaced(assignment, end)
        if succession.serving:
            self.workforce.promote(succession.serving)

    def _replaced(self, assignment: Assignment, end: End) -> None:
        """A worker of what serves ended by itself; gunicorn forks another, which waits where that may soon end the same way."""
        line, backoff = str(end.error), self.workforce.slots.backoff
        early = end.crash and assignment.fresh
        if early:
            backoff.crashed(assignment.gpu, assignment.failures)
        elif end.booting:
            backoff.fail(assignment.gpu)
        if early or end.booting:
            line += f"; the next try waits {backoff.seconds(assignment.gpu):g} s"
            self.words.complain(line)
        _log.error("%s", line)

    def _refused(self, assignment: Assignment) -> None:
        """A fork was refused, and has left again."""
        error = UnshareableError(assignment.refused)
        if not self.succession.serving:
            self.halt(error)
        if assignment.generation is self.succession.coming:
            self.succession.give_up(error)
        else:
            self.workforce.slots.backoff.fail(assignment.gpu)
            self.words.complain(str(error))

    def not_forked(self, why: str) -> None:
        """There is one worker fewer than should be, since the system would not have it."""
        error = ResourceError(why)
        if not self.succession.serving:
            self._killed(error)
            return
        _log.critical("%s", why)
        if self.succession.coming:
            self.succession.give_up(error)
        else:
            self.words.complain(why)

    def _killed(self, error: ExitError) -> None:
        """A first generation has lost one for want of memory or the like, which may pass; the server ends if it does not."""
        self.kills += 1
        if self.kills >= FIRST_KILLS:
            self.halt(error)
        _log.error("%s; try %d of %d", error, self.kills + 1, FIRST_KILLS)

    def _lost(self, assignment: Assignment, end: End) -> None:
        """A worker of a generation that has not opened ended."""
        if self.succession.serving:
            self.succession.give_up(end.error)
            return
        if end.blameless:
            return
        if isinstance(end.error, ResourceError) and end.state is not State.FAILED:
            self.workforce.slots.backoff.fail(assignment.gpu)
            self._killed(end.error)
            return
        self.halt(end.error)
