"""The master: what gunicorn's arbiter does not know. Which generation serves, which comes, which leaves."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from setproctitle import setproctitle

from server.barrier import Point
from server.exits import ExitError, ResourceError
from server.innocence import guilt
from server.master import capacity, words
from server.master.build import Build
from server.master.keeper import Keeper
from server.models.generation import Generation
from server.master.roster import Assignment, End, end_of, watch
from server.master.slots import Slots
from server.scoreboard import Scoreboard, now_ms
from server.settings import Settings
from server.states import Phase, Role, State

TITLE = "warmfork: master"
TURN_SECONDS = 30.0
"""The loop of the master turns at least this often, or it is not live."""
FIRST_KILLS = 3
"""Workers of the first generation that may be killed before the server gives up: memory is missing."""

_log = logging.getLogger("gunicorn.error")


class Master:
    """All that outlives a worker. Lives in the arbiter's process; a worker reads what it inherited of it."""

    def __init__(self, settings: Settings) -> None:
        """Make the page and bind the management socket; raises `ConfigurationError` where that fails."""
        self.settings = settings
        self.board = Scoreboard.create(2 * (settings.max_workers + settings.standby))
        self.board.set("active", settings.workers)
        self.board.set("standby", settings.standby)
        self.slots = Slots(self.board, settings.boot_timeout)
        self.words = words.Words(self.board)
        self.keeper = Keeper(settings.management_bind, self.board)
        self.serving: Generation | None = None
        self.coming: Generation | None = None
        self.build: Build | None = None
        self.again = False
        """A reload was asked for while one was under way."""
        self.kills = 0
        self.drain_ends = 0.0
        self.status = 0
        """The exit status, once it is known that it is not 0."""
        self.assignments: dict[int, Assignment] = {}

    def start(self) -> None:
        """Start the management process: from now on somebody answers."""
        self.turn()
        setproctitle(TITLE)
        self.keeper.start()

    def turn(self, seconds: float = TURN_SECONDS) -> None:
        """State when the master's loop will have turned again."""
        self.board.set("deadline_ms", now_ms() + int(seconds * 1000))

    # --- generations -------------------------------------------------------------------------------------------------

    def first(self, arbiter: Arbiter) -> None:
        """Make the first generation; nothing is served meanwhile, so this waits. Raises `ExitError`."""
        build = self._build(1)
        while not build.step(0.1):
            self.keeper.keep()
            self.turn(self.settings.boot_timeout + TURN_SECONDS)
        self.coming = build.generation
        workers = capacity.workers(self.settings, [holding.finding for holding in build.generation.holdings])
        self.board.set("active", workers)
        arbiter.num_workers = workers + self.settings.standby
        self._boot(build.generation)

    def reload(self) -> None:
        """Begin a new generation beside the one that serves."""
        if self.build or self.coming:
            _log.info("A reload is under way; the next begins after it")
            self.again = True
            return
        serving = self.serving.number if self.serving else 0
        try:
            self.build = self._build(max(serving, self.board.get("building")) + 1)
        except ExitError as error:
            self._refuse(error)

    def _build(self, number: int) -> Build:
        self.words.reasons.clear()
        self.board.set("building", number)
        return Build(number, self.settings, self.words.index, self.words.remembered(), self._say)

    def _say(self, phase: Phase, doing: str) -> None:
        if not self.serving:  # a reload shows nowhere but in what is said
            self.board.enter(phase)
        self.turn(self.settings.boot_timeout + TURN_SECONDS)
        self.words.say(doing)

    def _boot(self, generation: Generation) -> None:
        self.words.generations[generation.number] = generation
        self._say(Phase.BOOTING, f"generation {generation.number}: workers boot")

    def _open(self, arbiter: Arbiter, generation: Generation) -> None:
        """The whole generation takes over; what served before is told to leave."""
        old, self.serving, self.coming = self.serving, generation, None
        self.board.set("generation", generation.number)
        self.board.enter(Phase.SERVING if not self.drain_ends else Phase.DRAINING)
        for slot in self.slots.of(generation.number):
            self.slots.barrier.wake(slot)
        seconds = (time.monotonic_ns() - self.board.get("started_ns")) / 1e9
        _log.info("Generation %d is open, %.1f s after the start", generation.number, seconds)
        if old:
            for pid in self._pids(arbiter, old):
                self._retire(arbiter, pid, signal.SIGTERM)
        self._settle()

    def _refuse(self, error: ExitError) -> None:
        """Say why a reload failed; what served goes on serving."""
        _log.error("Generation %d is refused: %s", self.board.get("building"), error)
        self.words.reasons[:] = [f"generation {self.board.get('building')} was refused: {error}"]
        if self.build:
            self.build.close()
        self.build = None
        self._settle()

    def _settle(self) -> None:
        self.board.set("building", 0)
        self.words.say("")
        if self.again:
            self.again = False
            self.reload()

    # --- workers -----------------------------------------------------------------------------------------------------

    def fork(self, worker: Any) -> None:
        """Assign a worker that is about to be forked; where that is not possible its child leaves at once."""
        generation = self._short_of()
        active = len(self.slots.staying(generation.number, Role.ACTIVE))
        role = Role.ACTIVE if active < self.board.get("active") else Role.STANDBY
        backoff = self.slots.backoff()
        refused = guilt()
        if refused:
            refused = f"no worker can be forked: the master has {refused}"
        slot = None if refused else self.slots.take(generation.number, role)
        if slot is None and not refused:
            refused = f"no slot is free: {len(self.board.slots)} are taken"
        if refused:
            _log.critical("%s", refused)
        self.assignments[worker.age] = Assignment(generation, slot, backoff, refused)

    def _short_of(self) -> Generation:
        """The generation that the next worker belongs to: what serves is kept at its number first."""
        wanted = self.board.get("active") + self.board.get("standby")
        if self.serving and (not self.coming or len(self.slots.staying(self.serving.number)) < wanted):
            return self.serving
        if self.coming is None:
            message = "a worker is forked, yet there is no generation"
            raise HaltServer(message, 70)
        return self.coming

    def ended(self, arbiter: Arbiter, worker: Any, how: signal.Signals | int | None) -> None:
        """Take back what a worker had, and decide what its end means."""
        assignment = self.assignments.pop(worker.age)
        if assignment.slot is None:
            self.slots.failures += 1
            if not self.serving:
                self._halt(ExitError(assignment.refused))
            self.words.reasons[:] = [assignment.refused]
            return
        end = end_of(self.board, assignment.slot, how, self.settings.boot_timeout)
        self.slots.free(assignment.slot)
        if self.board.phase is Phase.STOPPING:
            return
        if assignment.retired:
            arbiter.num_workers -= 1
            self._forget(assignment.generation)
        elif assignment.generation is self.coming:
            self._lost(arbiter, end)
        elif end.booting and not end.blameless:
            line = f"{end.error}; the next try waits {self.slots.backoff():g} s"
            _log.error("%s", line)
            self.words.reasons[:] = [line]
            self.words.publish()
        elif end.signal and not end.blameless:
            _log.error("%s", end.error)
        self._promote()

    def _lost(self, arbiter: Arbiter, end: End) -> None:
        """A worker of a generation that has not opened ended."""
        if self.serving:
            generation, self.coming = self.coming, None
            arbiter.num_workers -= 1
            for pid in self._pids(arbiter, generation):
                self._retire(arbiter, pid, signal.SIGKILL)
            self._forget(generation)
            self.slots.failures = 0
            self._refuse(end.error)
            return
        if end.blameless:
            return
        if isinstance(end.error, ResourceError) and end.state is not State.FAILED:
            self.kills += 1
            if self.kills < FIRST_KILLS:
                _log.error("%s; try %d of %d", end.error, self.kills + 1, FIRST_KILLS)
                return
        self._halt(end.error)

    def _halt(self, error: ExitError) -> None:
        self.status = error.status
        self.stop()
        raise HaltServer(str(error), error.status)

    def _retire(self, arbiter: Arbiter, pid: int, number: signal.Signals) -> None:
        """Have a worker leave; its place goes with it."""
        worker = arbiter.WORKERS[pid]
        assignment = self.assignments[worker.age]
        if assignment.retired:
            return
        assignment.retired = True
        if assignment.slot is not None:
            self.board.slots["leave"][assignment.slot] = 1
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def _pids(self, arbiter: Arbiter, generation: Generation | None) -> list[int]:
        workers = arbiter.WORKERS.items()
        return [pid for pid, worker in workers if self.assignments[worker.age].generation is generation]

    def _forget(self, generation: Generation | None) -> None:
        """Let go of a generation's models once its last worker has ended."""
        if generation is None or generation in (self.serving, self.coming):
            return
        if all(assignment.generation is not generation for assignment in self.assignments.values()):
            self.words.generations.pop(generation.number, None)
            self.words.publish()

    def _promote(self) -> None:
        """Give the place of an active worker that is missing to one of the warm pool."""
        if not self.serving:
            return
        number = self.serving.number
        pool = [slot for slot in self.slots.standing(number, State.STANDBY) if slot in self.slots.staying(number, Role.STANDBY)]
        missing = self.board.get("active") - len(self.slots.staying(number, Role.ACTIVE))
        for slot in pool[: max(missing, 0)]:
            self.board.slots["role"][slot] = Role.ACTIVE
            self.slots.barrier.wake(slot)

    def grow(self, arbiter: Arbiter) -> None:
        """One worker more."""
        active = self.board.get("active")
        if active >= self.settings.max_workers:
            _log.warning("TTIN refused: %d workers are WARMFORK_MAX_WORKERS", active)
            return
        self.board.set("active", active + 1)
        arbiter.num_workers += 2 if self.coming and self.serving else 1
        self._promote()

    def shrink(self, arbiter: Arbiter) -> None:
        """One worker fewer: the newest leaves."""
        active = self.board.get("active")
        if active <= max(self.settings.ready_min, 1):
            _log.warning("TTOU refused: %d workers are the fewest (WARMFORK_READY_MIN=%d)", active, self.settings.ready_min)
            return
        self.board.set("active", active - 1)
        for generation in (self.serving, self.coming):
            pids = self._pids(arbiter, generation) if generation else []
            active_pids = [pid for pid in pids if self._is_active(arbiter, pid)]
            if active_pids:
                self._retire(arbiter, max(active_pids, key=lambda pid: arbiter.WORKERS[pid].age), signal.SIGTERM)

    def _is_active(self, arbiter: Arbiter, pid: int) -> bool:
        assignment = self.assignments[arbiter.WORKERS[pid].age]
        return not assignment.retired and assignment.slot is not None and self.board.slots["role"][assignment.slot] == Role.ACTIVE

    # --- the loop ----------------------------------------------------------------------------------------------------

    def tick(self, arbiter: Arbiter) -> None:
        """Whatever has to happen later, or again and again."""
        self.turn()
        setproctitle(TITLE)  # gunicorn sets one of its own when its loop begins
        if self.keeper.keep():
            _log.warning("The management process ended; a new one was started")
        for slot in self.slots.overdue():
            pid = int(self.board.slots["pid"][slot])
            if pid in arbiter.WORKERS:
                os.kill(pid, signal.SIGKILL)
        self._note_open()
        if self.build:
            self._step(arbiter)
        if self.coming:
            self._advance(arbiter, self.coming)
        if self.drain_ends and time.monotonic() >= self.drain_ends:
            self.stop()
            raise StopIteration

    def _step(self, arbiter: Arbiter) -> None:
        try:
            complete = self.build is not None and self.build.step(0)
        except ExitError as error:
            self._refuse(error)
            return
        if complete and self.build:
            self.coming, self.build = self.build.generation, None
            self._boot(self.coming)
            arbiter.num_workers += self.board.get("active") + self.board.get("standby")

    def _advance(self, arbiter: Arbiter, generation: Generation) -> None:
        """Open the next point of the barrier when the quorum has arrived there."""
        here = self.slots.staying(generation.number)
        quorum = self.settings.ready_quorum or self.board.get("active") + self.board.get("standby")
        arrived = [int(self.board.slots["barrier"][slot]) for slot in here]
        if self.board.get("rehearsing") < generation.number and sum(point >= Point.PROVEN for point in arrived) >= quorum:
            self.board.set("rehearsing", generation.number)
            for slot in here:
                self.slots.barrier.wake(slot)
        if sum(point >= Point.REHEARSED for point in arrived) >= quorum:
            self._open(arbiter, generation)

    def _note_open(self) -> None:
        for assignment in self.assignments.values():
            open_now = assignment.slot is not None and self.board.state(assignment.slot) in (State.ACTIVE, State.STANDBY)
            if open_now and not assignment.settled:
                assignment.settled = True
                self.slots.failures = 0
                self._promote()

    @property
    def busy(self) -> bool:
        """Whether something is under way that should not wait for a second."""
        return bool(self.build or self.coming or self.drain_ends)

    # --- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Begin the end: readiness goes false. True if there is nothing to wait for, also when asked a second time."""
        if self.drain_ends or not self.settings.drain or not self.serving:
            self.stop()
            return True
        self.board.enter(Phase.DRAINING)
        self.drain_ends = time.monotonic() + self.settings.drain
        return False

    def stop(self) -> None:
        """Say that the server is going away: a TERM to a worker now means leave."""
        self.board.enter(Phase.STOPPING)
        if self.build:
            self.build.close()

    def release(self) -> None:
        """In a worker, after its fork: close what is the master's, drop what other generations hold."""
        self.keeper.socket.close()
        if self.keeper.pidfd >= 0:
            os.close(self.keeper.pidfd)
        if self.build:
            os.close(self.build.child.pipe)

    def watch(self, arbiter: Arbiter) -> dict[int, signal.Signals | int]:
        """How the workers that have just ended did so."""
        return watch(arbiter.WORKERS)
