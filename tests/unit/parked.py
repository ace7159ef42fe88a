"""Requests that wait for their batches, in greenlets as those of a worker do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

from server.models.model import Model
from server.models.shapes import Shape
from server.refusals import AbandonedError
from server.scoreboard import Scoreboard
from server.serving import Serving
from server.settings import Settings
from server.tensors import Array
from server.worker.assistant import Assistants
from server.worker.batcher import Batcher
from server.worker.loop import Loop
from server.worker.tasks import Tasks
from server.worker.watchdog import Watchdog
from tests.unit.fakes import FakeSession

LONG = 60.0


@dataclass(eq=False)
class Asked:
    """One request, and what came of it."""

    given: Array
    task: greenlet | None = None
    answer: Array | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has an answer or an error."""
        return self.answer is not None or self.error is not None

    @property
    def right(self) -> bool:
        """Whether it got its own answer, from a model that gives back what it gets."""
        return self.answer is not None and np.array_equal(self.given, self.answer)


def row(value: float, count: int = 1, width: int = 3) -> Array:
    """Rows of a number of their own: `value`, and a little more for each next row."""
    return np.full((count, width), value, np.float64) + np.arange(count)[:, None] / 64


class Line:
    """The line of one worker: its models, its batcher, and whoever waits."""

    def __init__(
        self,
        *models: Model,
        steady: Callable[[Model, Shape], float] | None = None,
        most: int = 10_000,
        assistants: Assistants | None = None,
    ) -> None:
        """Serve `models`; `steady` says how many milliseconds each shape takes."""
        assistants = assistants or Assistants(Loop())
        bitten = self.bitten = list[float]()
        self.loop = assistants.loop
        self.tasks = Tasks()
        self.watchdog = Watchdog(lambda: bitten.append(time.monotonic()))
        self.serving = Serving(models, Scoreboard.create(1), 0, Settings.read({"WARMFORK_REQUEST_TIMEOUT": f"{LONG:g}"}))
        self.batcher = Batcher(self.tasks, self.watchdog, assistants, steady or self.serving.steady_ms)
        self.batcher.limit(most, LONG)
        self.serving.line = self.batcher

    def close(self) -> None:
        """Let go of the page and its descriptors at once, though the two hold each other."""
        del self.serving.line

    def ask(self, model: Model, given: Array, ago: float = 0.0) -> Asked:
        """A request that came `ago` seconds ago; it has parked, or is done, when this returns."""
        asked = Asked(given.astype(np.float32))

        def work() -> None:
            asked.task = getcurrent()
            try:
                came = time.monotonic_ns() - int(ago * 1e9)
                asked.answer = self.serving.infer(model, {"x": asked.given}, came)["y"]
            except BaseException as error:  # noqa: BLE001 - a test looks at it
                asked.error = error

        self.tasks.start(work)
        return asked

    def abandon(self, asked: Asked) -> None:
        """The client of a request that waits is gone."""
        assert asked.task
        asked.task.throw(AbandonedError())

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Turn the loop while something waits, or until it is so."""
        end = time.monotonic() + LONG
        while not until() if until else self.batcher.waiting:
            self.loop.turn(0 if self.batcher.ready else 0.01)
            self.batcher.turn()
            assert time.monotonic() < end, "nothing comes of it"

    def counted(self, index: int = 0) -> Any:
        """What was counted for a model."""
        return self.serving.board.slots["models"][0][index]


def sizes(model: Model) -> list[int]:
    """How many rows each run of a fake model had, padding included."""
    assert isinstance(model.session, FakeSession)
    return [len(run["x"]) for run in model.session.runs]


def came(model: Model) -> list[list[int]]:
    """The values of the first column of each run, without what was padded: whole numbers of requests above 0."""
    assert isinstance(model.session, FakeSession)
    return [[int(value) for value in run["x"][:, 0] if value] for run in model.session.runs]
