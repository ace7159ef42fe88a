"""From the fork to the open door: what a worker does, in this order, before it takes traffic.

It runs in the child, between gunicorn's `post_fork` and its `run()`. Whatever goes wrong is written into the slot and ends the
process; the master reads why.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import numpy as np
from setproctitle import setproctitle

from server.barrier import Barrier, Point
from server.exits import ExitError, ModelError, ResourceError
from server.gpus import Allotment, see
from server.models.generation import Generation
from server.models.holding import Holding
from server.models.model import Model
from server.nvml import held
from server.processes import clear_heap, expendable, share_heap
from server.scoreboard import NEVER, Scoreboard, now_ms, unpack
from server.serving import Serving, serve
from server.settings import Settings
from server.states import Event, Phase, Role
from server.warmup.own_request import Exchange
from server.warmup.polite import ALONE, FULL_SPEED, Pace, Polite
from server.warmup.proof import prove
from server.warmup.rehearsal import rehearse
from server.warmup.run_through import run_through
from server.warmup.warm import MOST_SECONDS, warm

_log = logging.getLogger("gunicorn.error")

_WARM = 0.4
"""Of the time that a worker may take to boot, what all shapes together may take to settle on a busy machine."""


class Boot:
    """The boot of one worker, in its own process."""

    def __init__(self, board: Scoreboard, slot: int, barrier: Barrier, generation: Generation, settings: Settings) -> None:
        """Boot the worker of `slot`, which is to serve `generation`."""
        self.board = board
        self.slot = slot
        self.barrier = barrier
        self.generation = generation
        self.settings = settings
        self.gpu = self._allotment()
        self.entered = time.monotonic()
        self.models: list[Model] = []
        self.pace: Pace = FULL_SPEED
        self.known: dict[str, list[float]] = {}
        """By model, how long each shape takes others that are proven with the same; see `_known`."""

    def _allotment(self) -> Allotment | None:
        """What it may use of the GPU that the master has given it, if a model runs on one."""
        if not self.generation.on_gpu:
            return None
        workers = self.board.get("active") + self.board.get("standby")
        return self.settings.allotment(workers, int(self.board.slots["gpu"][self.slot]))

    @property
    def device(self) -> str:
        """`cpu`, or the GPU's name among those that are visible."""
        return self.gpu.gpu.device if self.gpu else "cpu"

    def begin(self, backoff: float) -> None:
        """Take the slot, set the boot deadline, wait out the back-off, wait for the turn."""
        self.board.slots["pid"][self.slot] = os.getpid()
        self.board.slots["device"][self.slot] = self.device.encode()
        if self.gpu:
            see(self.gpu.gpu)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        share_heap()
        expendable(yes=True)
        faulthandler.enable(all_threads=True)
        self.expect_end(self.deadline_ms)
        self.title()
        if backoff:
            self.say(f"waiting {backoff:g} s, since boots failed before")
            time.sleep(backoff)  # here and not in the master, whose loop would stand still
        self.take_turn()

    def take_turn(self) -> None:
        """Wait for this worker's turn."""
        if not self.turn:
            self._wait_for_others("waiting for its turn to load and warm", lambda: bool(self.turn))
        if self.turn != ALONE:
            bound = any(holding.finding.bound for holding in self.generation.holdings)
            self.pace = Polite(lambda: self.turn, aside=self.settings.threads == 1 and not bound, breaks=not self.gpu)

    def _wait_for_others(self, step: str, over: Callable[[], bool]) -> None:
        """Wait until `over()`. That is not this worker's boot: its deadline stands still."""
        left_ms = self.deadline_ms - now_ms()
        self.say(step)
        self.expect_end(NEVER)
        self.barrier.wait(self.slot, over)
        self.expect_end(now_ms() + left_ms)

    def load(self) -> None:
        """Open every model of the generation, and make them what this process serves."""
        with self.failing():
            self.enter(Event.LOAD)
            for holding in self.generation.holdings:
                self.say(f"model {holding.files.key}: loading")
                opened = partial(holding.open, self.settings.threads, self.gpu)
                if holding.on_gpu:  # the driver's threads have the priority of the one that begins them, and keep it
                    self.models.append(self.pace.here(opened))
                else:  # without breaks: what opens files may be native code that does not bear to be interrupted
                    self.models.append(self.pace.aside(opened, breaks=False))
            serve(Serving(self.models, self.board, self.slot, self.settings))

    def warm(self) -> None:
        """Run every shape of every model until it has settled, and write down how long it took."""
        with self.failing():
            self.enter(Event.WARM)
            shapes = sum(len(model.shapes()) for model in self.models)
            seconds = min(MOST_SECONDS, _WARM * self.settings.boot_timeout / shapes)
            pairs = zip(self.generation.holdings, self.models, strict=True)
            self.known = {model.key: self._known(holding, len(model.shapes())) for holding, model in pairs}
            for model in self.models:
                rows = self.board.slots["models"][self.slot][model.index]["shapes"]
                for place, warmed in enumerate(warm(model, self.say, seconds, self.pace, self.known[model.key])):
                    rows[place] = (warmed.first_ms, warmed.steady_ms)
            if self.gpu:
                self.board.slots["gpu_bytes"][self.slot] = held(self.gpu.gpu) or self.generation.taken.gpu_bytes

    def prove(self, serving: Serving, threads: int, exchange: Exchange) -> None:
        """Check every answer, then serve a short load of our own: together with the others where nobody else serves."""
        with self.failing():
            self.enter(Event.PROVE)
            for model in self.models:
                prove(model, threads, self.say, self.pace, joins=bool(self.known[model.key]))
            self.arrive(Point.PROVEN)
            if self.turn == ALONE:
                number = self.generation.number
                self._wait_for_others(
                    "waiting for the others before the synthetic load",
                    lambda: max(self.board.get("rehearsing"), self.board.get("generation")) >= number,
                )
            serving.counters.on = False
            for model in self.models:
                self._rehearse(model, exchange)
            serving.counters.on = True
            for model in self.models:
                model.session.settle()
            clear_heap()

    def _rehearse(self, model: Model, exchange: Exchange) -> None:
        """In brief beside others, unless there is a bound that no worker of this generation has shown to hold."""
        slots = self.board.slots
        shown = ((slots["generation"] == self.generation.number) & (slots["barrier"] >= Point.REHEARSED)).any()
        beside = bool(self.known[model.key]) or self.pace is not FULL_SPEED
        if beside and (shown or model.files.toml.p95_ms is None):
            steady = self.board.slots["models"][self.slot][model.index]["shapes"]["steady_ms"][: len(model.shapes())]
            run_through(model, exchange, self.say, self.pace, steady.tolist())
        else:
            rehearse(model, exchange, self.say, self.pace)

    def _known(self, holding: Holding, shapes: int) -> list[float]:
        """How many milliseconds each shape takes workers that are proven with the same model, if there are any.

        They are of this generation, unless all of it boot at once, or of the one that the model was kept from. (No generation has
        the number 0, which stands for none.)
        """
        slots, number = self.board.slots, self.generation.number
        together = self.turn == ALONE and self.board.get("generation") < number
        same = [holding.kept_from] if together else [holding.kept_from, number]
        proven = np.isin(slots["generation"], same) & (slots["barrier"] >= Point.PROVEN)
        found = slots["models"]["shapes"]["steady_ms"][proven, holding.index, :shapes]
        found = found[(found > 0).all(axis=1)]
        return [float(each) for each in np.median(found, axis=0)] if len(found) else []

    def wait(self) -> None:
        """Wait until the generation opens as a whole, and in the warm pool until this worker is called."""
        self.pace.close()
        self.enter(Event.ARRIVE)
        expendable(yes=False)
        self.expect_end(NEVER)  # the others' turns may take longer than a boot
        self.say("waiting for the generation to open")
        self.arrive(Point.REHEARSED)
        self.barrier.wait(self.slot, lambda: self.board.get("generation") >= self.generation.number)
        self.say("")
        if self.role is Role.STANDBY:
            self.enter(Event.HOLD, NEVER)
            self.title()
            self.barrier.wait(self.slot, lambda: self.role is Role.ACTIVE)

    def open(self, deadline_ms: int) -> None:
        """Take traffic from now on; alive as long as the deadline is put off."""
        self.enter(Event.OPEN, deadline_ms)
        self.title()
        seconds = time.monotonic() - int(self.board.slots["forked_ns"][self.slot]) / 1e9
        _log.info("Worker %d (pid: %d) takes traffic, %.3f s after its fork", self.slot, os.getpid(), seconds)

    @property
    def role(self) -> Role:
        """What the master wants of this worker."""
        return Role(int(self.board.slots["role"][self.slot]))

    @property
    def turn(self) -> int:
        """0 while it is to come, `ALONE`, or until when to be polite."""
        return int(self.board.slots["turn"][self.slot])

    @property
    def deadline_ms(self) -> int:
        """When the state that it is in must be over, by the monotonic clock."""
        return unpack(int(self.board.slots["word"][self.slot]))[1]

    def expect_end(self, deadline_ms: int) -> None:
        """Have this process ended at a time of the monotonic clock, by itself and, failing that, by the master."""
        self.board.renew(self.slot, deadline_ms)
        if deadline_ms == NEVER:
            faulthandler.cancel_dump_traceback_later()
        else:
            # No Python runs in a native call that hangs; this thread is none of Python's.
            faulthandler.dump_traceback_later(max(deadline_ms - now_ms(), 1) / 1000, exit=True)

    def say(self, what: str) -> None:
        """Write the step at hand into the slot."""
        self.board.slots["doing"][self.slot] = what.encode()[:256]

    def title(self) -> None:
        """Be seen in `ps` as what this process is."""
        role = self.role.name.lower()
        setproctitle(f"warmfork: worker {self.slot} · {role} · gen {self.generation.number} · {self.device}")

    def arrive(self, point: Point) -> None:
        """Write down that this worker has reached a point of the barrier. The master's loop looks there."""
        self.board.slots["barrier"][self.slot] = point

    def enter(self, event: Event, deadline_ms: int | None = None) -> None:
        """Move to the next state; the seconds spent in the last one go into the slot."""
        now = time.monotonic()
        before = self.board.state(self.slot)
        self.board.slots["phases"][self.slot][before] = now - self.entered
        self.entered = now
        self.board.move(self.slot, event, self.deadline_ms if deadline_ms is None else deadline_ms)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """End this process with its exit status if what is inside fails, having said why."""
        try:
            yield
        except ExitError as error:
            self.fail(error)
        except MemoryError:
            self.fail(ResourceError(f"worker {self.slot}: memory ran out at {self.doing()}"))
        except Exception as error:  # noqa: BLE001 - whatever it is, this process must say it and end
            _log.exception("worker %d failed at %s", self.slot, self.doing())
            self.fail(ModelError(f"worker {self.slot}: {type(error).__name__} at {self.doing()}: {error}"))

    def doing(self) -> str:
        """The step at hand."""
        return bytes(np.bytes_(self.board.slots["doing"][self.slot])).decode(errors="replace")

    def fail(self, error: ExitError) -> NoReturn:
        """Say why in the slot and leave at once."""
        if self.board.phase is Phase.STOPPING:  # our own requests are refused then, which is nobody's fault
            leave(0)
        self.say(str(error))
        self.board.slots["status"][self.slot] = error.status
        self.board.move(self.slot, Event.FAIL)
        leave(error.status)


def leave(status: int) -> NoReturn:
    """End this process without exit handlers and destructors, which were inherited and may hang."""
    logging.shutdown()
    os._exit(status)


def deadline_in(seconds: float) -> int:
    """A deadline so many seconds from now, for `State.ACTIVE`."""
    return now_ms() + int(seconds * 1000)
