"""The master: what gunicorn's arbiter does not know. Every hook that runs in it calls one method here."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

from gunicorn.errors import HaltServer
from setproctitle import setproctitle

from server import session
from server.exits import ExitError, ModelError, ResourceError
from server.gpus import SECONDS, see
from server.master.capacity import Room
from server.master.handover import HandOver
from server.master.keeper import Keeper, bound
from server.master.losses import Losses
from server.master.predecessor import Predecessor
from server.master.roster import watch
from server.master.slots import Slots
from server.master.succession import Succession
from server.master.turns import Turns
from server.master.words import Words
from server.master.workforce import REFUSED_BACKOFF, Workforce
from server.scoreboard import Scoreboard, now_ms
from server.settings import Settings
from server.states import Phase, State

TITLE = "warmfork: master"
TURN_SECONDS = 30.0
"""The loop of the master turns at least this often, or it is not live."""
PROBES_SECONDS = 15.0
"""How long the management process may take to answer those whom it has accepted, once another's answers the rest."""
SILENT_ENDS = 3
"""How often the management process of a new master may end before the old one has heard of it."""

_log = logging.getLogger("gunicorn.error")


class Master:
    """All that outlives a worker. Lives in the arbiter's process; a worker reads what it inherited of it."""

    def __init__(self, settings: Settings) -> None:
        """Make the page, start the management process on a socket that is bound or inherited, and ask for the GPUs.

        Raises `ExitError` where that fails.
        """
        predecessor = Predecessor.find(os.environ)
        self.scaled = bool(predecessor and predecessor.scaled)
        """Whether TTIN or TTOU has said how many workers there should be, also to an older master."""
        if predecessor and self.scaled:
            settings = replace(settings, workers=min(predecessor.active, settings.max_workers), workers_given=True)
        self.board = Scoreboard.create(2 * (settings.max_workers + settings.standby))
        self.board.set("active", settings.workers)
        self.board.set("standby", settings.standby)
        self.words = Words(self.board, lambda what: self.hand_over.say("doing", what))
        self.hand_over = HandOver(self.board, settings, self.words, predecessor)
        inherited = predecessor and predecessor.socket
        sock = inherited or bound(settings.management_bind, "WARMFORK_MANAGEMENT_BIND")
        self.keeper = Keeper(sock, self.board, predecessor)
        self._start()
        self.settings = settings = self._with_gpus(settings)
        if not settings.gpus:
            see(None)  # torch would begin CUDA in whoever compiles for the processor, and hold memory of a GPU
        self.workforce = Workforce(self.board, Slots(self.board, settings.boot_timeout, len(settings.gpus)), settings)
        self.succession = Succession(settings, self.workforce, self.words, self.mind, lambda: self.behind)
        self.turns = Turns(self.workforce.slots, settings.polite_seconds, lambda: self.behind)
        self.losses = Losses(self.succession, self._halt)
        self.stands_back = settings.polite
        """Whether the whole session may still run behind others."""
        self.served = False
        """Whether a worker of this server has taken traffic."""
        self.fork_from = 0.0
        """When the next worker may be forked."""
        self.drain_ends = 0.0
        self.status = 0
        """The exit status."""

    def turn(self, more_seconds: float = 0.0) -> None:
        """State when the master's loop will have turned again."""
        self.board.set("deadline_ms", now_ms() + int((TURN_SECONDS + more_seconds) * 1000))

    def mind(self) -> None:
        """What must not wait for a load to end: the management process, and when the loop will turn again."""
        self._stand_up()
        self._keep()
        self.turn(self.settings.boot_timeout)

    def _stand_up(self) -> None:
        """The session stands back until a generation opens, and no longer in one phase than a step of it may."""
        since = time.monotonic() - self.board.get("phase_since_ns") / 1e9
        if self.stands_back and (self.board.get("generation") or since > self.settings.polite_seconds):
            self.stands_back = not session.stand_up()

    def _start(self) -> None:
        """Start the management process: from now on somebody answers."""
        self.turn()
        setproctitle(TITLE)
        self._keep()
        address = self.keeper.socket.getsockname()
        who = "an older master's, until this one is warm" if self.hand_over.predecessor else self.keeper.pid
        _log.info("Management at: http://%s:%d (%s)", address[0], address[1], who)

    def _with_gpus(self, settings: Settings) -> Settings:
        """The settings with the GPUs that there are; the driver may take its time to say so."""
        self.turn(SECONDS)
        try:
            return settings.with_gpus(os.environ)
        except ExitError as error:
            self.failed(str(error))
            self.keeper.stop()
            raise

    def _keep(self) -> None:
        """Keep the management process; a predecessor's answers until this server has opened."""
        if not self.hand_over.beside or self.board.get("generation"):
            self.keeper.keep()

    @property
    def behind(self) -> bool:
        """Whether this server starts behind others that serve."""
        return self.hand_over.beside is not None or (self.settings.polite and not self.served)

    def failed(self, why: str) -> None:
        """This server does not take over."""
        self.hand_over.say("failed", why)

    def first(self) -> None:
        """Build the first generation; nothing is served meanwhile, so this waits. Raises `ExitError`."""
        build = self.succession.begin()
        while not (generation := build.step(0.1)):
            self.mind()
        gpus = self.workforce.gpu_room(generation, SECONDS)
        if older := self.hand_over.beside:
            active = Room(self.settings, generation.private_bytes, older.pid, gpus).first(older.active)
        else:
            active = Room(self.settings, generation.private_bytes, gpus=gpus).first()
        self.board.set("active", active)
        self.succession.boot(generation)

    def fork(self, worker: Any) -> None:
        """Before a fork: decide what the worker is for. Whatever goes wrong refuses this fork alone."""
        generation = self.succession.short_of()
        if generation is None:
            self._halt(ModelError("a worker is forked, yet there is no generation"))
        try:
            self.workforce.assign(worker, generation)
            self.turns.give()
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end a server that serves
            _log.exception("a worker could not be assigned")
            self.workforce.refuse(worker, generation, f"{type(error).__name__}: {error}")

    def not_forked(self, error: OSError) -> None:
        """gunicorn could not fork a worker, whose end nobody will hear of. What serves goes on; it is tried again in a moment."""
        self.workforce.withdraw()
        self.fork_from = time.monotonic() + REFUSED_BACKOFF
        self.losses.not_forked(f"no worker can be forked: {error}")

    def ended(self, worker: Any, how: signal.Signals | int | None) -> None:
        """After the end of a worker: take back what it had, and decide what its end means."""
        assignment, end = self.workforce.dismiss(worker, how)
        if self.board.phase not in (Phase.STOPPING, Phase.HANDED_OVER):
            self.losses.ended(assignment, end)

    def _halt(self, error: ExitError) -> NoReturn:
        """The server ends, for want of anything to serve."""
        self.status = error.status
        self.failed(str(error))
        self.stop()
        raise HaltServer(str(error), error.status)

    def reload(self) -> None:
        """Make a new generation; never beside two others: a new master shall do it, and once the one before it is gone."""
        self.words.hand_over_refused = ""  # whoever asks for a reload has read it
        if not self.hand_over.defer_reload():
            self.succession.reload()

    def grow(self) -> None:
        """One worker more."""
        active = self.board.get("active")
        if active >= self.settings.max_workers:
            _log.warning("TTIN refused: %d workers are WARMFORK_MAX_WORKERS", active)
            return
        generations = [each for each in (self.succession.serving, self.succession.coming) if each]
        try:
            self.workforce.expect_room(*generations)
        except ResourceError as error:
            _log.warning("TTIN refused: %s", error)
            return
        self.board.set("active", active + 1)
        self.scaled = True
        for generation in generations:
            self.workforce.promote(generation)

    def shrink(self) -> None:
        """One worker fewer."""
        active = self.board.get("active")
        if active <= self.settings.ready_min:
            _log.warning("TTOU refused: %d workers are WARMFORK_READY_MIN", active)
            return
        self.board.set("active", active - 1)
        self.scaled = True
        for generation in (self.succession.serving, self.succession.coming):
            if generation:
                self.workforce.shrink(generation)

    def tick(self, *, heard_all: bool) -> None:
        """Whatever has to happen later, or again and again. `heard_all`: no signal has come that is not handled."""
        self.turn()
        if heard_all:
            self.board.set("heard_ns", time.monotonic_ns())
        setproctitle(TITLE)  # gunicorn sets one of its own when its loop begins
        self._stand_up()
        self._keep()
        if self.hand_over.beside and self.keeper.ends >= SILENT_ENDS:
            self._halt(ModelError(f"the management process ended {self.keeper.ends} times and never said that it answers"))
        if self.hand_over.listen():
            self._serve_on()
        self.workforce.end_overdue()
        if self.workforce.notice() and self.succession.serving:
            self.workforce.promote(self.succession.serving)
        if self.workforce.newly_open() and self.succession.serving:
            if not self.workforce.slots.backoff.failures:
                self.words.complain("")
            self.workforce.promote(self.succession.serving)
            self.served = self.served or State.ACTIVE in self.board.states().tolist()
        if self.hand_over.take_reload():
            self.succession.reload()
        self.succession.tick()
        self.turns.give()

    def over(self) -> bool:
        """Look whether it is time to stop: the drain is over, or a new master serves and has all probes."""
        if self.board.phase is Phase.HANDED_OVER:
            since = time.monotonic() - self.board.get("phase_since_ns") / 1e9
            return self.hand_over.complete() and (self.keeper.ended() or since > PROBES_SECONDS)
        return bool(self.drain_ends) and time.monotonic() >= self.drain_ends

    @property
    def places(self) -> int:
        """How many workers gunicorn is to keep."""
        return self.succession.places if self.may_fork else len(self.workforce.assignments)

    @property
    def may_fork(self) -> bool:
        """Whether it is time to fork, after a fork that failed."""
        return time.monotonic() >= self.fork_from

    @property
    def busy(self) -> bool:
        """Whether something is under way that should not wait for a second."""
        forks = self.places > len(self.workforce.assignments)
        watched = self.hand_over.successor.pid or self.hand_over.deferred
        return self.succession.busy or self.turns.waiting or forks or bool(self.drain_ends or watched)

    def may_hand_over(self) -> bool:
        """Whether a new master may be started now; why not goes into the log. During a reload it is `due` after that."""
        return self.hand_over.may_begin(draining=bool(self.drain_ends), busy=self.succession.busy)

    @property
    def due(self) -> bool:
        """Whether a new master that was deferred may be started by now."""
        return self.hand_over.deferred and not self.succession.busy

    def bequeath(self, environ: dict[str, str], *, systemd: bool) -> None:
        """In the child that becomes a new master: leave it, in `environ`, what it inherits."""
        self.hand_over.successor.bequeath(environ, self.keeper.socket, self.board.get("active"), self.scaled, systemd)

    def stay(self, how: signal.Signals | int | None) -> None:
        """The new master has ended before this one: this one serves on."""
        self.hand_over.successor.ended(how)
        self._serve_on()
        if self.hand_over.successor.owes_reload and not self.drain_ends:
            self.succession.reload()

    def _serve_on(self) -> None:
        """The new master does not take over after all: take back what its `warm` has changed, and see who has ended meanwhile."""
        if self.board.phase is not Phase.HANDED_OVER:
            return
        _log.info("The new master was told to end, or has ended; this one serves on")
        self.board.enter(Phase.SERVING)
        for generation in list(self.words.generations.values()):
            self.succession.forget(generation)
        if self.succession.serving:
            self.workforce.promote(self.succession.serving)

    def drain(self) -> bool:
        """Begin the end: readiness goes false. True if there is nothing to wait for, also when asked a second time."""
        if self.drain_ends or not self.settings.drain or not self.succession.serving or self.hand_over.backed:
            return True
        self.board.enter(Phase.DRAINING)
        self.drain_ends = time.monotonic() + self.settings.drain
        return False

    def stop(self) -> None:
        """Say that the server is going away, unless another master's serves on: a TERM to a worker now means leave."""
        self.failed("it was told to end")  # so that one which has not left yet stays
        if self.hand_over.others_serve:
            self.board.enter(Phase.HANDED_OVER)
            self.hand_over.successor.let_go()
            for generation in self.workforce.others():
                self.workforce.retire(generation, signal.SIGTERM)
        else:
            self.hand_over.successor.end()
            self.board.enter(Phase.STOPPING)
        self.turn(self.settings.stop_seconds)  # gunicorn's loop does not turn while it waits for its workers
        self.succession.close()

    def watch(self, pids: Iterable[int]) -> dict[int, signal.Signals | int]:
        """How the workers that have just ended did so; a trial that has ended remembers it by itself."""
        if self.succession.build and self.succession.build.child:
            self.succession.build.child.look()
        return watch(pids)

    def release(self) -> None:
        """In a worker, after its fork: close what is the master's, and drop what other generations hold.

        That would otherwise stay in memory for as long as this worker lives.
        """
        self.keeper.socket.close()
        if self.keeper.pidfd >= 0:
            os.close(self.keeper.pidfd)
        self.hand_over.let_go()
        if self.succession.build and self.succession.build.child:
            self.succession.build.child.forget()
        self.succession.build = None
        self.succession.built = self.succession.serving = self.succession.replaced = self.succession.coming = None
        self.words.generations.clear()
        self.workforce.assignments.clear()
