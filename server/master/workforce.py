"""The workers as the master sees them: whom it forks, whom it has leave, who takes an empty place."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from server.barrier import Point
from server.exits import ResourceError
from server.fork_safety import unsafe
from server.master.placement import WHILE_SERVING, GpuRoom
from server.master.roster import Assignment, End, end_of
from server.master.slots import Slots
from server.models.generation import Generation
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import BOOTING, Role, State

NVML_REST = 60.0
"""Seconds for which NVML is not asked again, once it has not answered in time."""
REFUSED_BACKOFF = 1.0
"""Seconds that pass, at least, before a fork that was refused is tried again."""

_log = logging.getLogger("gunicorn.error")


class Workforce:
    """Assignments by gunicorn's worker object.

    gunicorn forks as many workers as it is told and would end the oldest if there were more. So it is told the number of places,
    in which whoever was retired is counted until the end: gunicorn never picks whom to end.
    """

    def __init__(self, board: Scoreboard, slots: Slots, settings: Settings) -> None:
        """Begin with nobody."""
        self.board = board
        self.slots = slots
        self.settings = settings
        self.assignments: dict[Any, Assignment] = {}
        self.nvml_from = 0.0
        """When NVML is asked again, after it has kept the master waiting."""

    def assign(self, worker: Any, generation: Generation) -> None:
        """Assign a worker that is about to be forked; where that is not possible its child leaves at once."""
        found = unsafe()
        if found:
            self.refuse(worker, generation, f"no worker can be forked: the master has {found}")
            return
        active = len(self.slots.staying(generation.number, Role.ACTIVE))
        slot = self.slots.take(generation.number, Role.ACTIVE if active < self.board.get("active") else Role.STANDBY)
        if slot is None:
            self.refuse(worker, generation, f"no slot is free: {len(self.board.slots)} are taken")
            return
        gpu, failures = (int(self.board.slots[field][slot]) for field in ("gpu", "failures"))
        self.assignments[worker] = Assignment(generation, slot, gpu, self.slots.backoff.seconds(gpu), failures=failures)

    def gpu_room(self, generation: Generation, seconds: float = WHILE_SERVING) -> GpuRoom | None:
        """The room on GPUs for more workers of a generation; None where they run on none. NVML may take so many `seconds`.

        Raises `ResourceError` if NVML fails. Where it was silent for so long it is not asked again for a while: the master, who
        waits for it, has others to hear.
        """
        if not generation.on_gpu:
            return None
        asked = time.monotonic()
        if asked < self.nvml_from:
            message = f"NVML was silent, and is asked again in {self.nvml_from - asked:.0f} s"
            raise ResourceError(message)
        try:
            coming = self.slots.coming_gpus(generation.number)
            return GpuRoom(self.settings, generation.taken.gpu_bytes, coming, self.slots.booting_gpus, seconds)
        except ResourceError:
            now = time.monotonic()
            self.nvml_from = now + NVML_REST if now - asked >= seconds else 0.0
            raise

    def expect_room(self, *generations: Generation) -> None:
        """Raise `ResourceError` naming the bound where one more worker of each does not fit, beside those still to be forked.

        All are taken to be as large as those of the last, the newest.
        """
        if generations and (room := self.gpu_room(generations[-1])):
            wanted = self.board.get("active") + self.board.get("standby")
            room.expect(sum(max(wanted - self.staying(each), 0) + 1 for each in generations))

    def refuse(self, worker: Any, generation: Generation, why: str) -> None:
        """A worker that is about to be forked has no place; its child leaves after a moment, so that forks do not storm."""
        _log.critical("%s", why)
        seconds = max(self.slots.backoff.seconds(0), REFUSED_BACKOFF)  # it is the master who is at fault, and no GPU
        self.assignments[worker] = Assignment(generation, None, backoff=seconds, refused=why)

    def withdraw(self) -> None:
        """Take back what was assigned to workers that could not be forked: gunicorn has given them no pid."""
        for worker in [each for each in self.assignments if not isinstance(each.pid, int)]:
            slot = self.assignments.pop(worker).slot
            if slot is not None:
                self.slots.free(slot)

    def dismiss(self, worker: Any, how: signal.Signals | int | None) -> tuple[Assignment, End | None]:
        """Take back what a worker had; give how it ended, None if it never had a slot."""
        assignment = self.assignments.pop(worker)
        if assignment.slot is None:
            return assignment, None
        end = end_of(self.board, assignment.slot, how, self.settings.boot_timeout)
        self.slots.free(assignment.slot)
        return assignment, end

    def of(self, generation: Generation | None) -> list[Any]:
        """A generation's workers, the oldest first."""
        found = [worker for worker, assignment in self.assignments.items() if assignment.generation is generation]
        return sorted(found, key=lambda worker: worker.age)

    def staying(self, generation: Generation) -> int:
        """How many workers of a generation are not told to leave, nor to be; those without a slot included."""
        return len(self._staying(generation))

    def _staying(self, generation: Generation) -> list[Any]:
        assignments = self.assignments
        return [each for each in self.of(generation) if not (assignments[each].retired or assignments[each].spent)]

    def leaving(self, *staying: Generation | None) -> int:
        """How many workers there are whose place goes with them: retired, spent, or of a generation that does not stay."""
        return sum(
            assignment.retired or assignment.spent or all(assignment.generation is not each for each in staying)
            for assignment in self.assignments.values()
        )

    def retire(self, generation: Generation | None, number: signal.Signals, keep: int = 0) -> int:
        """Have the workers of a generation leave by a signal, all but the newest `keep` that take traffic; how many are kept."""
        staying = [worker for worker in self.of(generation) if not self.assignments[worker].retired]
        # Those held back go first, then those that still boot, then whoever is on the GPU that the next worker comes to.
        next_gpu = self.slots.next_gpu(self.board.get("generation"))

        def order(worker: Any) -> tuple[bool, bool, bool]:
            assignment = self.assignments[worker]
            return self._is_active(assignment), assignment.opened is not None, assignment.gpu != next_gpu

        staying.sort(key=order)
        kept = min(keep, len(staying))
        for worker in staying[: len(staying) - kept]:
            self._retire(worker, number)
        return kept

    def relieve(self, generation: Generation, keep: int) -> None:
        """Have the spent workers of a generation leave, all but `keep`, in whose places nobody takes traffic yet."""
        spent = [
            worker for worker in self.of(generation) if self.assignments[worker].spent and not self.assignments[worker].retired
        ]
        for worker in spent[: max(len(spent) - keep, 0)]:
            self._retire(worker, signal.SIGTERM)

    def notice(self) -> bool:
        """Find who leaves though the master has not asked for it, or has served enough; whether a place is to be taken."""
        found = False
        for assignment in self.assignments.values():
            if assignment.slot is None or assignment.retired:
                continue
            slot = self.board.slots[assignment.slot]
            if self.board.state(assignment.slot) is State.DRAINING:  # somebody has sent TERM to this worker alone
                self.slots.missed += not assignment.spent and slot["role"] == Role.ACTIVE
                assignment.retired = found = True
                slot["leave"] = 1
            elif slot["spent"] and not assignment.spent:
                assignment.spent = found = True
        return found

    def abort(self, generation: Generation) -> None:
        """Kill those of a generation that have not opened."""
        for worker in self.of(generation):
            slot = self.assignments[worker].slot
            if slot is not None and self.board.state(slot) in BOOTING:
                self._retire(worker, signal.SIGKILL)

    def others(self, *generations: Generation | None) -> list[Generation]:
        """Generations that still have workers, besides those named."""
        found = {assignment.generation.number: assignment.generation for assignment in self.assignments.values()}
        return [each for each in found.values() if all(each is not named for named in generations)]

    def cast(self, generation: Generation) -> None:
        """Decide who of a generation takes traffic: those that got there first; the rest are the warm pool."""
        barrier = self.board.slots["barrier"]
        first = sorted(self.slots.staying(generation.number), key=lambda slot: -int(barrier[slot]))
        turns = self._turns(first)
        first.sort(key=lambda slot: (-int(barrier[slot]), turns[slot]))
        for place, slot in enumerate(first):
            self.board.slots["role"][slot] = Role.ACTIVE if place < self.board.get("active") else Role.STANDBY

    def _turns(self, slots: Iterable[int | None]) -> dict[int | None, int]:
        """How many of those before it each has on its GPU, so that who takes traffic is spread over all of them."""
        before: Counter[int] = Counter()
        turns = {}
        for slot in slots:
            gpu = int(self.board.slots["gpu"][slot])
            turns[slot] = before[gpu]
            before[gpu] += 1
        return turns

    def _retire(self, worker: Any, number: signal.Signals) -> None:
        assignment = self.assignments[worker]
        assignment.retired = True
        if assignment.slot is not None:
            self.board.slots["leave"][assignment.slot] = 1
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    def promote(self, generation: Generation) -> None:
        """Give the places of active workers that are missing to the warm pool, and then those of workers that still boot.

        Such a one becomes the pool's instead. Not where it is proven: it may be reading what is wanted of it at this moment.
        """
        number, slots = generation.number, self.board.slots
        staying = set(self.slots.staying(number, Role.STANDBY))
        pool = [slot for slot in self.slots.standing(number, State.STANDBY) if slot in staying]
        missing = self._missing(generation)
        for _ in range(min(missing, len(pool))):
            taken = Counter(slots["gpu"][self.slots.staying(number, Role.ACTIVE)].tolist())
            fewest = [taken[gpu] for gpu in slots["gpu"][pool].tolist()]
            self.slots.fill()
            self._call(pool.pop(fewest.index(min(fewest))))  # on the GPU where fewest take traffic
        coming = [slot for slot in self.slots.staying(number, Role.ACTIVE) if slots["barrier"][slot] < Point.PROVEN]
        for slot, late in zip(pool, reversed(coming), strict=False):
            slots["role"][late], slots["missed"][late] = Role.STANDBY, 0
            self._call(slot)

    def _call(self, slot: int) -> None:
        """Have a worker of the warm pool take traffic."""
        self.board.slots["role"][slot] = Role.ACTIVE
        self.slots.barrier.wake(slot)

    def shrink(self, generation: Generation) -> None:
        """Have the newest active workers of a generation leave, if there are more than should be; first those that still boot.

        Of the others those of the GPU that has most.
        """
        staying = self._staying(generation)
        active = [worker for worker in staying if self._is_active(self.assignments[worker])]
        turns = self._turns(self.assignments[worker].slot for worker in active)
        active.sort(key=lambda worker: (self.assignments[worker].opened is None, turns[self.assignments[worker].slot]))
        placeless = [worker for worker in staying if self.assignments[worker].slot is None]
        spare = max(len(staying) - self.board.get("active") - self.board.get("standby"), 0)
        for worker in [*placeless[:spare], *active[self.board.get("active") :]]:
            self._retire(worker, signal.SIGTERM)
        if generation.number == self.board.get("generation"):
            self.slots.missed = min(self.slots.missed, self._missing(generation))

    def _missing(self, generation: Generation) -> int:
        """How many active workers of a generation there are to come."""
        return max(self.board.get("active") - len(self.slots.staying(generation.number, Role.ACTIVE)), 0)

    def _is_active(self, assignment: Assignment) -> bool:
        slot = assignment.slot
        return slot is not None and not assignment.retired and self.board.slots["role"][slot] == Role.ACTIVE

    def newly_open(self) -> bool:
        """Whether a worker has opened since the last call; boots no longer fail on its GPU then."""
        found = False
        for assignment in self.assignments.values():
            state = State.EMPTY if assignment.slot is None else self.board.state(assignment.slot)
            if state in (State.ACTIVE, State.STANDBY) and (assignment.opened is None or state is not assignment.opened[0]):
                if assignment.opened is None:
                    found = True
                    self.slots.backoff.opened(assignment.gpu)
                assignment.opened = (state, time.monotonic())
        return found

    def end_overdue(self) -> None:
        """Kill workers that have outlived the end that they should have made of themselves."""
        overdue = set(self.slots.overdue())
        for worker, assignment in self.assignments.items():
            if assignment.slot in overdue:
                os.kill(worker.pid, signal.SIGKILL)
