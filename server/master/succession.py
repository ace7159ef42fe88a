"""Which generation serves and which comes: a new one is built, boots, opens as a whole, and only then does the old one leave."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from gunicorn.arbiter import Arbiter

from server.barrier import Point
from server.exits import ExitError
from server.master.build import Build
from server.master.words import Words
from server.master.workforce import Workforce
from server.models.generation import Generation
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Phase

_log = logging.getLogger("gunicorn.error")


class Succession:
    """The generations of one master."""

    def __init__(self, settings: Settings, workforce: Workforce, words: Words, mind: Callable[[], None]) -> None:
        """Begin with none. `mind` does what must not wait for a load to end."""
        self.settings = settings
        self.board: Scoreboard = workforce.board
        self.workforce = workforce
        self.words = words
        self.mind = mind
        self.serving: Generation | None = None
        self.coming: Generation | None = None
        self.build: Build | None = None
        self.begun = 0
        """Generations begun so far; a number is never used twice, also if its generation was refused."""
        self.again = False
        """A reload was asked for while one was under way."""

    @property
    def busy(self) -> bool:
        """Whether a generation is in the making."""
        return bool(self.build or self.coming)

    @property
    def wanted(self) -> int:
        """How many workers a generation has."""
        return self.board.get("active") + self.board.get("standby")

    def begin(self) -> Build:
        """Begin to build the next generation; raises `ExitError` if the repository is wrong."""
        self.begun += 1
        self.words.reasons.clear()
        self.board.set("building", self.begun)
        self.build = Build(self.begun, self.settings, self.words.index, self.words.remembered(), self._say, self.mind)
        return self.build

    def boot(self) -> Generation:
        """The build is complete: its workers may boot."""
        if self.build is None:
            message = "no generation is being built"
            raise RuntimeError(message)
        generation, self.build = self.build.generation, None
        self.coming = self.words.generations[generation.number] = generation
        self._say(Phase.BOOTING, f"generation {generation.number}: workers boot")
        return generation

    def reload(self) -> None:
        """Begin a generation beside the one that serves; one that is under way is finished first."""
        if self.busy:
            _log.info("A reload is under way; the next begins after it")
            self.again = True
            return
        try:
            self.begin()
        except ExitError as error:
            self.refuse(error)

    def short_of(self) -> Generation | None:
        """The generation that the next worker belongs to: what serves is kept at its number first."""
        if self.serving and self.coming and len(self.workforce.slots.staying(self.serving.number)) >= self.wanted:
            return self.coming
        return self.serving or self.coming

    def tick(self, arbiter: Arbiter) -> None:
        """Go on with whatever is under way."""
        if self.build:
            try:
                complete = self.build.step(0)
            except ExitError as error:
                self.refuse(error)
                return
            if complete:
                self.boot()
                arbiter.num_workers += self.wanted
        if self.coming:
            self._advance(arbiter, self.coming)

    def _advance(self, arbiter: Arbiter, generation: Generation) -> None:
        """Open the next point of the barrier when the quorum has arrived there."""
        slots = self.workforce.slots
        here = slots.staying(generation.number)
        quorum = self.settings.ready_quorum or self.wanted
        arrived = [int(self.board.slots["barrier"][slot]) for slot in here]
        if self.board.get("rehearsing") < generation.number and sum(point >= Point.PROVEN for point in arrived) >= quorum:
            self.board.set("rehearsing", generation.number)
            slots.wake(generation.number)
        if sum(point >= Point.REHEARSED for point in arrived) >= quorum:
            self._open(arbiter, generation)

    def _open(self, arbiter: Arbiter, generation: Generation) -> None:
        """The whole generation takes over; what served before is told to leave."""
        old, self.serving, self.coming = self.serving, generation, None
        self.board.set("generation", generation.number)
        if self.board.phase is not Phase.DRAINING:
            self.board.enter(Phase.SERVING)
        self.workforce.slots.wake(generation.number)
        seconds = (time.monotonic_ns() - self.board.get("started_ns")) / 1e9
        _log.info("Generation %d is open, %.1f s after the start", generation.number, seconds)
        if old:
            self.workforce.retire(arbiter, old, signal.SIGTERM)
        self._settle()

    def give_up(self, arbiter: Arbiter, error: ExitError) -> None:
        """Take the coming generation down whole, since one of its workers ended; what served goes on serving."""
        generation, self.coming = self.coming, None
        arbiter.num_workers -= 1  # for the one that ended; the others lower it as they end
        self.workforce.retire(arbiter, generation, signal.SIGKILL)
        self.workforce.slots.failures = 0
        self.forget(generation)
        self.refuse(error)

    def refuse(self, error: ExitError) -> None:
        """Say why a reload failed."""
        line = f"generation {self.begun} was refused: {error}"
        _log.error("%s", line)
        self.words.reasons[:] = [line]
        self.close()
        self._settle()

    def close(self) -> None:
        """End what is being built."""
        if self.build:
            self.build.close()
        self.build = None

    def forget(self, generation: Generation | None) -> None:
        """Let go of a generation's models once its last worker has ended."""
        if generation and generation not in (self.serving, self.coming) and not self.workforce.of(generation):
            self.words.generations.pop(generation.number, None)
            self.words.publish()

    def _settle(self) -> None:
        self.board.set("building", 0)
        self.words.say("")
        if self.again:
            self.again = False
            self.reload()

    def _say(self, phase: Phase, doing: str) -> None:
        if not self.serving:  # a reload never shows in the phase
            self.board.enter(phase)
        self.mind()
        self.words.say(doing)
