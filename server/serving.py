"""What one worker serves: its models, who is let in, what is counted. Made after the fork, read by the WSGI app."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.counters import Counters
from server.exits import GpuLostError
from server.models.model import Model, Prepared
from server.models.shapes import Shape
from server.refusals import AbandonedError, BusyError, ModelFailedError, RefusalError, UnknownModelError
from server.scoreboard import Scoreboard, now_ms
from server.settings import Settings
from server.states import Event, Phase, State
from server.tensors import Array, Tensors
from server.turnstile import Execute, Turnstile, late

_log = logging.getLogger("gunicorn.error")
_current: list[Serving] = []


class Line(Protocol):
    """Where requests wait for their turn."""

    interrupted: bool
    """Whether a signal to the worker is raised as `SystemExit` in the midst of a request."""

    def admit(self) -> None:
        """Raise `BusyError` if one that comes now would wait behind too many."""

    def run(self, execute: Execute, model: Model, part: Prepared, received_ns: int) -> dict[str, Array]:
        """Have `part` executed in its turn. Raises `BusyError`, `LateError`, or what the model raises."""


class Serving:
    """The models of one worker and the one way to run them. As safe from several threads as its line is."""

    def __init__(self, models: Sequence[Model], board: Scoreboard, slot: int, settings: Settings) -> None:
        """Serve `models` from `slot` of `board`."""
        self.board = board
        self.slot = slot
        self.settings = settings
        self.doing = board.slots["doing"]
        self.counters = Counters(board, slot)
        self.line: Line = Turnstile(settings.max_queue, settings.request_timeout)
        self.models: Mapping[str, Mapping[int, Model]] = {
            name: {model.version: model for model in models if model.name == name} for name in {model.name for model in models}
        }
        self.lost = False
        """Whether no inference succeeds here any more: it leaves at once, for another worker to take its place."""
        self.warmed = {model.key: frozenset(model.shapes()) for model in models}

    def find(self, name: str, version: str | None = None) -> Model:
        """The model that a request names; the highest version served if it names none. Raises `UnknownModelError`."""
        versions = self.models.get(name)
        if versions is None:
            message = f"no model {name[:64]!r}; served are {', '.join(sorted(self.models))}"
            raise UnknownModelError(message)
        if version is None:
            return versions[max(versions)]
        for number, model in versions.items():
            if str(number) == version:
                return model
        message = f"model {name!r} has no version {version[:64]!r}; served are {', '.join(map(str, sorted(versions)))}"
        raise UnknownModelError(message)

    def infer(self, model: Model, inputs: Tensors, received_ns: int) -> dict[str, Array]:
        """Run one request that was received at `received_ns` of the monotonic clock; all outputs by name.

        Raises `BadInputError`, `BusyError`, `LateError` or `ModelFailedError`.
        """
        try:
            made = [(part, self.line.run(self.execute, model, part, received_ns)) for part in model.prepare(inputs)]
            result = model.finish(made, inputs)
            for part, _ in made:
                if part.shape not in self.warmed[model.key]:
                    self.counters.remember(model, part.shape)
        except (RefusalError, AbandonedError):
            raise
        except MemoryError as error:
            message = f"model {model.name!r} ran out of memory for this request"
            raise BusyError(message) from error
        except BaseException as error:
            # A model may raise anything, and a panic of a library in Rust is no `Exception`; a signal of ours comes here too.
            asked = isinstance(error, SystemExit | KeyboardInterrupt) and self.line.interrupted
            if asked and threading.current_thread() is threading.main_thread():
                raise
            _log.exception("model %s failed on a request", model.key)
            if isinstance(error, GpuLostError) and self.board.state(self.slot) is State.ACTIVE:
                self.lost = True
                os.kill(os.getpid(), signal.SIGTERM)
            message = f"model {model.name!r} failed"
            raise ModelFailedError(message) from error
        if time.monotonic_ns() - received_ns > self.settings.request_timeout * 1e9:
            raise late(self.settings.request_timeout)
        return result

    @property
    def stopping(self) -> bool:
        """Whether the whole server is going away."""
        return self.board.get("phase") == Phase.STOPPING

    def renew(self, seconds: float) -> None:
        """Say on the page that this worker lives, and must say so again within so many seconds."""
        if self.board.state(self.slot) is State.ACTIVE:
            self.board.renew(self.slot, now_ms() + int(seconds * 1000))

    def admit(self) -> None:
        """Raise `BusyError` for a request that would have to wait behind too many."""
        self.line.admit()

    def execute(self, model: Model, parts: Sequence[Prepared], shape: Shape, queue_ns: int) -> list[dict[str, Array]]:
        """Run one batch in `shape`; what each of `parts` gets. They have waited `queue_ns` in sum."""
        self.doing[self.slot] = model.label  # should it crash, the master says where
        started = time.monotonic_ns()
        try:
            outputs = model.run(parts, shape)
        finally:
            self.doing[self.slot] = b""
        ended = time.monotonic_ns()
        rows = sum(model.plan.rows(part.came) for part in parts)
        self.counters.ran(model, shape, rows, queue_ns, ended - started, cold=shape not in self.warmed[model.key])
        return model.share(outputs, parts)

    def steady_ms(self, model: Model, shape: Shape) -> float:
        """How long `shape` takes when warm, as it was measured before this worker opened; 0 if it was not."""
        shapes = model.shapes()
        record = self.board.slots["models"][self.slot][model.index]["shapes"]
        return float(record["steady_ms"][shapes.index(shape)]) if shape in shapes else 0.0

    def spend(self) -> None:
        """Say that this worker has served enough: another should take its place."""
        self.board.slots["spent"][self.slot] = 1

    def leave(self) -> None:
        """Say that this worker takes no more traffic, of its own will or since it was asked to."""
        if self.board.state(self.slot) is State.ACTIVE:
            self.board.move(self.slot, Event.LEAVE)

    def answered(self, model: Model, received_ns: int, input_ns: int, output_ns: int) -> None:
        """Count a request that got its result; `input_ns` and `output_ns` went into decoding and encoding."""
        self.counters.answered(model, received_ns, input_ns, output_ns)

    def refused(self, model: Model | None, received_ns: int) -> None:
        """Count a request that got an error."""
        self.counters.refused(model, received_ns)


Served = Callable[[], Serving]
"""Gives what this process serves; see `current`."""


def serve(serving: Serving) -> None:
    """Make `serving` what this process serves. Once per worker, before its app is loaded."""
    _current[:] = [serving]


def current() -> Serving:
    """What this process serves. Raises `LookupError` in a process that is no worker."""
    if not _current:
        message = "this process serves no models: the app is loaded by a worker, after the fork"
        raise LookupError(message)
    return _current[0]
