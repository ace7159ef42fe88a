"""Which generation serves and which comes: a new one is built, boots, opens as a whole, and only then does the old one leave."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.barrier import Point
from server.exits import AskedToStopError, ExitError, ModelError
from server.master.build import Build
from server.master.capacity import Room
from server.master.words import Words
from server.master.workforce import Workforce
from server.models.generation import Generation
from server.models.operator import let_go
from server.processes import clear_heap
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Phase, State

_log = logging.getLogger("gunicorn.error")


class Succession:
    """The generations of one master."""

    def __init__(
        self,
        settings: Settings,
        workforce: Workforce,
        words: Words,
        mind: Callable[[], None],
        behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with none. `mind` does what waits for no load and no first request; `behind` says whether others come first."""
        self.settings = settings
        self.board: Scoreboard = workforce.board
        self.workforce = workforce
        self.words = words
        self.mind = mind
        self.serving: Generation | None = None
        self.coming: Generation | None = None
        self.build: Build | None = None
        self.built: Generation | None = None
        """Complete, but waiting for the workers of a generation before the one that serves to leave: slots are for two."""
        self.behind = behind
        self.begun = 0
        """Generations begun so far; a number is never used twice, also if its generation was refused."""
        self.one_by_one = False
        """Whether the newest generation takes over worker by worker, since memory will not hold two as a whole."""
        self.replaced: Generation | None = None
        """What served before such a one: it takes over again if that fails on its way."""
        self.again = False
        """A reload was asked for while one was under way."""
        self.forgotten = False
        """Whether models have been let go of, which may hold themselves in a circle."""

    @property
    def busy(self) -> bool:
        """Whether a generation is in the making, or still taking over."""
        return bool(self.making or self.workforce.others(self.serving))

    @property
    def making(self) -> bool:
        """Whether a generation is in the making."""
        return bool(self.build or self.built or self.coming)

    @property
    def wanted(self) -> int:
        """How many workers a generation has."""
        return self.board.get("active") + self.board.get("standby")

    @property
    def places(self) -> int:
        """How many workers gunicorn is to keep."""
        generations = [each for each in (self.serving, self.coming) if each]
        places = len(generations) * self.wanted + self.workforce.leaving(*generations)
        if self.one_by_one:
            places = min(places, self.wanted + 1)
        places = min(places, len(self.board.slots))  # who comes waits for the slot of one that leaves
        if self.serving:  # one at a time: gunicorn's loop hears nothing while it forks several
            places = min(places, len(self.workforce.assignments) + 1)
        return max(places, len(self.workforce.assignments))  # or gunicorn would end somebody

    def begin(self) -> Build:
        """Begin to build the next generation; raises `ExitError` if the repository is wrong."""
        self.begun += 1
        self.words.begin()
        self.board.set("building", self.begun)
        polite = self.begun > 1 or self.behind()
        self.build = Build(self.begun, self.settings, self.words, self._say, self.mind, polite=polite)
        return self.build

    def boot(self, generation: Generation) -> None:
        """A generation is complete: its workers may boot. Raises `ResourceError` if there is no memory for one of them."""
        self.one_by_one = False
        if self.serving:
            if generation.taken is not self.serving.taken:
                self.workforce.nvml_from = 0.0  # its trial has just had NVML's answer
            room = Room(self.settings, generation.private_bytes, gpus=self.workforce.gpu_room(generation))
            self.one_by_one = room.beside(self.wanted) < self.wanted
        self.build = self.built = None
        self.workforce.slots.backoff.forget()  # those were of other models
        self.coming = self.words.generations[generation.number] = generation
        self._say(Phase.BOOTING, f"generation {generation.number}: workers boot")

    def reload(self) -> None:
        """Begin a generation beside the one that serves; one that is under way is finished first."""
        if self.making:
            _log.info("A reload is under way; the next begins after it")
            self.again = True
            return
        with self._refusing():
            self.begin()

    def short_of(self) -> Generation | None:
        """The generation that the next worker belongs to: what serves is kept at its number first."""
        if self.serving and self.coming and self.workforce.staying(self.serving) >= self.wanted:
            return self.coming
        return self.serving or self.coming

    def tick(self) -> None:
        """Go on with whatever is under way."""
        if self.one_by_one and not self.coming and not self.workforce.others(self.serving):
            self._end_one_by_one()
        if self.forgotten:
            self.forgotten = False
            clear_heap()
        if self.build:
            with self._refusing():
                if generation := self.build.step(0):
                    self.built, self.build = generation, None
                    self.words.say(f"generation {generation.number}: waits for older workers to leave")
        if self.built and not self.workforce.others(self.serving):
            with self._refusing():
                self.boot(self.built)
        if self.coming:
            self._advance(self.coming)
        if self.serving:
            self._relieve(self.serving)

    def _advance(self, generation: Generation) -> None:
        """Open the next point of the barrier when the quorum has arrived there."""
        slots = self.workforce.slots
        here = slots.staying(generation.number)
        whole = 1 if self.one_by_one else self.wanted
        quorum = min(self.settings.ready_quorum or whole, whole)
        arrived = [int(self.board.slots["barrier"][slot]) for slot in here]
        doing = f"generation {generation.number}: workers boot, {sum(arrived.count(each) for each in Point)} are proven"
        if self.words.doing != doing:
            self.words.say(doing)
        if self.board.get("rehearsing") < generation.number and sum(point >= Point.PROVEN for point in arrived) >= quorum:
            self.board.set("rehearsing", generation.number)
            slots.wake(generation.number)
        if sum(point >= Point.REHEARSED for point in arrived) >= min(max(quorum, self.settings.ready_min), whole):
            self._open(generation)

    def _open(self, generation: Generation) -> None:
        """The whole generation takes over, or the first worker of it."""
        self.workforce.cast(generation)
        old, self.serving, self.coming = self.serving, generation, None
        self.replaced = old if self.one_by_one else None
        if not self.one_by_one:
            self.workforce.slots.missed = 0  # who was missed before has his place taken now
        self.board.set("generation", generation.number)
        self.mind()
        if self.board.phase not in (Phase.DRAINING, Phase.HANDED_OVER):
            self.board.enter(Phase.SERVING)
        self.workforce.slots.wake(generation.number)
        seconds = (time.monotonic_ns() - self.board.get("started_ns")) / 1e9
        _log.info("Generation %d is open, %.1f s after the start", generation.number, seconds)
        self.forget(old)
        self._settle()

    def _end_one_by_one(self) -> None:
        """What was replaced has left as a whole, and does not take over again."""
        replaced, self.replaced, self.one_by_one = self.replaced, None, False
        self.forget(replaced)

    def _relieve(self, serving: Generation) -> None:
        """Tell older and spent workers to leave, as many as there are others that take traffic in their place."""
        missing = max(self.board.get("active") - len(self.workforce.slots.standing(serving.number, State.ACTIVE)), 0)
        for old in self.workforce.others(serving, self.coming):
            missing -= self.workforce.retire(old, signal.SIGTERM, keep=missing)
        self.workforce.relieve(serving, keep=missing)

    def give_up(self, error: ExitError) -> None:
        """Take the coming generation down whole, since one of its workers ended; what served goes on serving."""
        generation, self.coming = self.coming, None
        self.workforce.retire(generation, signal.SIGKILL)
        self.forget(generation)
        self.refuse(error)

    def take_back(self, error: ExitError) -> None:
        """A generation that takes over worker by worker has lost one in its boot: what served before takes over again."""
        failed, old = self.serving, self.replaced
        if not failed or not old:
            return
        self.serving, self.replaced = old, None
        self.board.set("generation", old.number)
        self.workforce.abort(failed)
        self.workforce.shrink(old)  # a TTOU meanwhile has not reached it
        self.forget(failed)
        self._complain(failed.number, error)
        self.words.say("")

    def refuse(self, error: ExitError) -> None:
        """Say why a reload failed."""
        self._complain(self.begun, error)
        if self.build or self.built:
            self.forgotten = True  # what was loaded for it
        self.close()
        self._settle()

    def _complain(self, number: int, error: ExitError) -> None:
        line = f"generation {number} was refused: {error}"
        _log.error("%s", line)
        self.words.reload_refused = line

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever goes wrong inside refuses the reload, and no more."""
        try:
            yield
        except AskedToStopError:  # in the middle of a load; the master's loop hears of it next
            self.again = False
            self.close()
            self._settle()
        except ExitError as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001 - what serves goes on serving
            _log.exception("the reload failed")
            self.refuse(ModelError(f"{type(error).__name__}: {error}"))

    def close(self) -> None:
        """End what is being built."""
        if self.build:
            self.build.close()
        if self.built:
            self._let_go(self.built)
        self.build = self.built = None

    def forget(self, generation: Generation | None) -> None:
        """Let go of a generation's models once its last worker has ended, and it can't take over again."""
        stays = (self.serving, self.coming, self.replaced)
        if generation and generation not in stays and not self.workforce.of(generation):
            self.words.generations.pop(generation.number, None)
            self.words.publish()
            self._let_go(generation)

    def _let_go(self, generation: Generation) -> None:
        """Nobody needs the models of a generation but those that another one has as well, or is to have."""
        others = [each for each in (self.serving, self.coming, self.replaced, self.built) if each and each is not generation]
        kept = [holding.finding for other in others for holding in other.holdings]
        kept += [holding.finding for holding in self.build.held.values()] if self.build else []
        for holding in generation.holdings:
            if all(holding.finding is not finding for finding in kept):
                let_go(holding.python.name)
                self.forgotten = True  # not at once: whoever calls this holds it still

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
