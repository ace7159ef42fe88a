"""Make a generation: trial, load, survival of what has changed on disk; the rest is kept.

Each step that may hang or crash happens in a child first. None but the load, which the trial has timed, blocks the master.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

from server.engines.catalogue import engine_for
from server.engines.engine import Rung
from server.exits import AskedToStopError, ConfigurationError, ModelError, ResourceError
from server.fork_safety import fork_safe
from server.master.words import Words
from server.models import operator, repository
from server.models.finding import NOTHING, Finding
from server.models.generation import Generation
from server.models.holding import Holding
from server.models.repository import ModelFiles, Stamp
from server.models.source import shares_compiled, source, text
from server.processes import clear_heap, signals_held
from server.scoreboard import now_ms
from server.settings import Settings
from server.states import Phase
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing
from server.warmup.polite import FULL_SPEED, Pace, Polite
from server.warmup.trial import survival, trial
from server.warmup.warm import once

MIND_SECONDS = 0.25
"""How often a load is interrupted for what must not wait."""
NATIVE_GRACE = 5.0
"""Seconds after the deadline of the master's load at which a native call that Python cannot interrupt shows its stacks."""

_log = logging.getLogger("gunicorn.error")


class Build:
    """A generation in the making. `step` until it gives that."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        words: Words,
        say: Callable[[Phase, str], None],
        mind: Callable[[], None],
        *,
        polite: bool,
    ) -> None:
        """Start the trial of what is not the same in the generation that serves.

        `words` knows that, a model's place in a slot and the shapes met cold, `say` hears the phase and the step, `mind` is
        called again and again during a load. `polite`: somebody serves beside it, of this server or another.
        Raises `ConfigurationError` if the repository is wrong.
        """
        self.number = number
        self.settings = settings
        self.words = words
        self.remembered = words.remembered()
        self.say = say
        self.mind = mind
        try:
            self.files = repository.scan(settings.models)
            self.stamps = {files.key: files.stamp() for files in self.files}
            if self.files != repository.scan(settings.models):
                message = f"{settings.models}: changed while it was being read"
                raise ConfigurationError(message)
        except OSError as error:
            message = f"{error.filename}: {error.strerror}"
            raise ConfigurationError(message) from None
        self.gpu = settings.allotment(self._workers()) if settings.gpus else None
        """What a trial may use of the first GPU."""
        self.polite = polite
        """Whether it is done behind those that serve, as far as it does not take too long."""
        self.held = {holding.files.key: holding for holding in self._kept(words.serving)} if words.serving else {}
        self.changed = [files for files in self.files if files.key not in self.held]
        self.taken = words.serving.taken if words.serving else NOTHING
        """What its models take of a GPU; until that is measured, what those do that serve."""
        self.child: ThrowAwayChild | None = None
        self.findings: list[Finding] = []
        """What the trial has found of those that have changed."""
        self.loaded: list[Holding] = []
        self.modules: list[str] = []
        """Names of the operator's Python that was imported for it."""
        if self.held:
            _log.info("Generation %d: unchanged, and kept: %s", number, ", ".join(self.held))
        serving = words.serving.holdings if words.serving else []
        self.remeasures = any(each.on_gpu and each.files.key not in self.held for each in serving)
        """Whether a model is no longer what it was on a GPU: what takes its memory there is measured anew."""
        if self.changed or (self.remeasures and any(each.on_gpu for each in self.held.values())):
            say(Phase.TRYING, "trial")
            self._start()

    def step(self, timeout: float) -> Generation | None:
        """Go on for up to `timeout` seconds, the load itself aside. Gives the generation once complete; raises `ExitError`."""
        if self.child:
            if not self.child.step(timeout):
                if self.polite and time.monotonic() > self.hurries:
                    self._hurry(self.child)
                return None
            found, self.taken, self.child = self.child.verdict(), self.child.taken or self.taken, None
            self.findings = self.findings or found
        if len(self.loaded) < len(self.changed):
            self._load_next()
            return None
        generation = Generation(self.number)
        for files in self.files:
            if files not in self.changed:
                self._same(files)  # what is not shared is read again by each worker
            generation.holdings.append(self.held[files.key])
        generation.taken = self.taken if generation.on_gpu else NOTHING
        # The first build is frozen. If anything led back to it (a traceback that a module has kept), it would keep its models.
        self.held, self.loaded = {}, []
        return generation

    def close(self) -> None:
        """End the child at hand, if any, and let go of what was loaded."""
        if self.child:
            self.child.close()
        for name in self.modules:
            operator.let_go(name)

    def _workers(self) -> int:
        """Among how many the GPUs are shared: those that serve, or are asked for; one where nobody has said how many."""
        board = self.words.board
        known = self.words.serving or self.settings.workers_given
        return board.get("active") + board.get("standby") if known else 1

    def _kept(self, serving: Generation) -> Iterator[Holding]:
        """What is the same on disk as when it was loaded, and has met no shape since that is to be warmed as well."""
        for holding in serving.holdings:
            key = holding.files.key
            if holding.stamp == self.stamps.get(key) and holding.met == self.remembered.get(key, ()):
                yield replace(holding, index=self.words.index(key), kept_from=serving.number)

    def _start(self) -> None:
        self.child = self._trial() if self.changed and not self.loaded else self._survival()
        self.hurries = time.monotonic() + self.settings.polite_seconds

    def _survival(self) -> ThrowAwayChild:
        new = {holding.files.key for holding in self.loaded}
        # On a GPU they are all at once, and are measured so.
        together = self.remeasures or any(holding.on_gpu for holding in self.loaded)
        holdings = [each for each in self.held.values() if each.files.key in new or (together and each.on_gpu)]
        return survival(holdings, self.settings, self.gpu, polite=self.polite)

    def _trial(self) -> ThrowAwayChild:
        child = trial(self.changed, self.settings, self.remembered, self.gpu, polite=self.polite)
        say = self.say  # and no circle with `self`
        child.relay = lambda message: say(Phase.TRYING, message.what) if isinstance(message, Doing) else None
        return child

    def _hurry(self, child: ThrowAwayChild) -> None:
        """A child that stands back can't be told to hurry: another begins anew, at full speed."""
        _log.info("%s: not done behind those that serve in %g s, begins anew", child.name, self.settings.polite_seconds)
        child.close()
        self.polite = False
        self._start()

    def _load_next(self) -> None:
        """Load one that has changed; after the last start a child that shows whether they survive a fork.

        One a step: in between the master hears its signals, and gives the place of a worker that has ended to another.
        """
        place = len(self.loaded)
        if self.number == 1 and not place:
            self._import_engines()
        self.loaded.append(self._load(self.changed[place], self.findings[place]))
        if len(self.loaded) < len(self.changed):
            return
        clear_heap()
        self.held |= {holding.files.key: holding for holding in self.loaded}
        self.say(Phase.FORKING, "trial of the fork")
        self._start()

    def _import_engines(self) -> None:
        """Import them, which takes seconds, behind another server's workers; and freeze them before the first model.

        They are most of what a collection would go through when a generation has gone. What is imported later (by an engine
        that a reload brings, a compiler, the operator's Python) is gone through, and does not stand back: who stands back may be
        kept waiting up to the deadline, which then ends the start, and not a master whose workers serve.
        """
        for files in self.changed:
            with self._loading(files, "importing its engine"):
                pace = self._pace()
                pace.aside(partial(engine_for, files.path))
                pace.close()  # not where it raised: who is told to end does not wait for an import
        clear_heap()
        gc.freeze()

    def _pace(self) -> Pace:
        until = now_ms() + int(self.settings.polite_seconds * 1000)
        return Polite(lambda: until, aside=True) if self.polite else FULL_SPEED

    def _load(self, files: ModelFiles, finding: Finding) -> Holding:
        with self._loading(files, "loading"):
            engine = engine_for(files.path)  # its import is shared, if not its session
            python = operator.load(files)
            self.modules.append(python.name)
            told = source(files, python, self.gpu if finding.device == "cuda" else None, graphs=finding.graphs)
            session = engine.load(told, 1) if finding.rung == Rung.LIVE else None
            holding = Holding(
                files=files,
                python=python,
                text=text(files),
                session=session,
                finding=finding,
                index=self.words.index(files.key),
                stamp=self.stamps[files.key],
                remembered=tuple(tuple(shape) for shape in finding.remembered),
                met=self.remembered.get(files.key, ()),
            )
            if session and shares_compiled(told, self.settings.threads):
                once(holding.open(1), lambda step: self.say(Phase.LOADING, f"{step}, finding it compiled"))
        return holding

    @contextmanager
    def _loading(self, files: ModelFiles, step: str) -> Iterator[None]:
        """Bound what is done for a model in the master itself; its files must stay as they are, the process fit to fork."""
        where = f"model {files.key}: {step} in the master"
        self.say(Phase.LOADING, where)
        self._same(files)
        try:
            with fork_safe(where), _deadline(files, self.settings.boot_timeout, self.mind, ends=self.number == 1):
                yield
        except MemoryError:
            message = f"{where}: memory ran out"
            raise ResourceError(message) from None
        self._same(files)

    def _same(self, files: ModelFiles) -> None:
        """Raise `ConfigurationError` unless the files are still those that the trial loaded."""
        then, now = self.stamps[files.key], _stamp(files)
        if then != now:
            changed = sorted({entry[0] for entry in set(then) ^ set(now)})
            message = f"{changed[0]}: changed while it was being loaded (inode, size or time)"
            raise ConfigurationError(message)


def _stamp(files: ModelFiles) -> Stamp:
    try:
        return files.stamp()
    except OSError:
        return ()


@contextmanager
def _deadline(files: ModelFiles, seconds: float, mind: Callable[[], None], *, ends: bool) -> Iterator[None]:
    """Bound a load that a child has already done in less, and do meanwhile what must not wait. A TERM, INT or QUIT ends it.

    By an exception from a signal's handler. Where no Python runs, by stacks in the log, and the end of the process if it `ends`:
    not where workers serve, who go on without a master, until whoever asks `/livez` hears of it.
    """
    end = time.monotonic() + seconds

    over = False
    heeds = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal over
        if callable(heed := heeds[signal.Signals(number)]):
            heed(number, frame)  # the master's loop hears it, once it is let
        if not over:
            over = True
            raise AskedToStopError(0)

    def turn(_number: int, _frame: FrameType | None) -> None:
        if over:
            return
        if time.monotonic() < end:
            mind()
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.dump_traceback(all_threads=True)
        message = f"model {files.key}: hung for more than {seconds:g} s while the master loaded it"
        raise ModelError(message)

    handler = signal.signal(signal.SIGALRM, turn)
    timer = signal.setitimer(signal.ITIMER_REAL, MIND_SECONDS, MIND_SECONDS)
    try:
        for number in heeds:
            signal.signal(number, stop)
        try:
            with signals_held():  # or its thread would take, as long as it has not begun, what this one holds back
                faulthandler.dump_traceback_later(seconds + NATIVE_GRACE, exit=ends)
            yield
        finally:
            over = True  # nothing raises any more: all of what follows is done
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        for number, heed in heeds.items():
            signal.signal(number, heed)
