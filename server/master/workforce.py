"""The workers as the master sees them: whom it forks, whom it has leave, who takes an empty place."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from typing import Any

from gunicorn.arbiter import Arbiter

from server.fork_safety import unsafe
from server.master.roster import Assignment, End, end_of
from server.master.slots import Slots
from server.models.generation import Generation
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Role, State

UNSAFE_BACKOFF = 1.0
"""Seconds that pass, at least, before a master that is unfit to fork is looked at again."""

_log = logging.getLogger("gunicorn.error")


class Workforce:
    """Assignments by gunicorn's `worker.age`.

    gunicorn forks as many workers as it is told. The end of one that was retired lowers that number, so that gunicorn never picks
    whom to end.
    """

    def __init__(self, board: Scoreboard, slots: Slots, settings: Settings) -> None:
        """Begin with nobody."""
        self.board = board
        self.slots = slots
        self.settings = settings
        self.assignments: dict[int, Assignment] = {}

    def assign(self, worker: Any, generation: Generation) -> None:
        """Assign a worker that is about to be forked; where that is not possible its child leaves at once."""
        assignment = Assignment(generation, None, self.slots.backoff())
        self.assignments[worker.age] = assignment
        active = len(self.slots.staying(generation.number, Role.ACTIVE))
        role = Role.ACTIVE if active < self.board.get("active") else Role.STANDBY
        found = unsafe()
        if found:
            assignment.refused = f"no worker can be forked: the master has {found}"
            assignment.backoff = max(assignment.backoff, UNSAFE_BACKOFF)
        else:
            assignment.slot = self.slots.take(generation.number, role)
            if assignment.slot is None:
                assignment.refused = f"no slot is free: {len(self.board.slots)} are taken"
                assignment.retired = True
        if assignment.refused:
            _log.critical("%s", assignment.refused)

    def dismiss(self, worker: Any, how: signal.Signals | int | None) -> tuple[Assignment, End | None]:
        """Take back what a worker had; give how it ended, None if it never had a slot."""
        assignment = self.assignments.pop(worker.age)
        if assignment.slot is None:
            self.slots.failures += 1
            return assignment, None
        end = end_of(self.board, assignment.slot, how, self.settings.boot_timeout)
        self.slots.free(assignment.slot)
        return assignment, end

    def of(self, generation: Generation | None) -> list[int]:
        """The ages of a generation's workers."""
        return [age for age, assignment in self.assignments.items() if assignment.generation is generation]

    def retire(self, arbiter: Arbiter, generation: Generation | None, number: signal.Signals) -> None:
        """Have every worker of a generation leave by a signal."""
        for age in self.of(generation):
            self._retire(arbiter, age, number)

    def _retire(self, arbiter: Arbiter, age: int, number: signal.Signals) -> None:
        assignment = self.assignments[age]
        if assignment.retired:
            return
        assignment.retired = True
        if assignment.slot is not None:
            self.board.slots["leave"][assignment.slot] = 1
        for pid, worker in arbiter.WORKERS.items():
            if worker.age == age:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def promote(self, generation: Generation) -> None:
        """Give the places of active workers that are missing to the warm pool."""
        number = generation.number
        staying = set(self.slots.staying(number, Role.STANDBY))
        pool = [slot for slot in self.slots.standing(number, State.STANDBY) if slot in staying]
        missing = self.board.get("active") - len(self.slots.staying(number, Role.ACTIVE))
        for slot in pool[: max(missing, 0)]:
            self.board.slots["role"][slot] = Role.ACTIVE
            self.slots.barrier.wake(slot)

    def shrink(self, arbiter: Arbiter, generation: Generation) -> None:
        """Have the newest active worker of a generation leave."""
        active = [age for age in self.of(generation) if self._is_active(self.assignments[age])]
        if active:
            self._retire(arbiter, max(active), signal.SIGTERM)

    def _is_active(self, assignment: Assignment) -> bool:
        slot = assignment.slot
        return slot is not None and not assignment.retired and self.board.slots["role"][slot] == Role.ACTIVE

    def newly_open(self) -> bool:
        """Whether a worker has opened since the last call; boots no longer fail then."""
        found = False
        for assignment in self.assignments.values():
            slot = assignment.slot
            if slot is not None and not assignment.settled and self.board.state(slot) in (State.ACTIVE, State.STANDBY):
                assignment.settled = found = True
        if found:
            self.slots.failures = 0
        return found

    def end_overdue(self, arbiter: Arbiter) -> None:
        """Kill workers that have outlived the end that they should have made of themselves."""
        for slot in self.slots.overdue():
            pid = int(self.board.slots["pid"][slot])
            if pid in arbiter.WORKERS:
                os.kill(pid, signal.SIGKILL)
