"""The trial: a throw-away child loads every model from disk, finds out how it can be shared, and runs it in every shape.

It decides the rung of the ladder for each model: a rung holds if a child on it survives loading, a fork where the rung has one,
every shape and the golden samples. Whatever a model does to its process, it does to a child.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.engines.catalogue import engine_for
from server.engines.engine import Engine, Rung, Session
from server.exits import UnshareableError
from server.fork_safety import fork_safe
from server.models import operator
from server.models.finding import Finding
from server.models.holding import Holding
from server.models.model import Model
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.shapes import Shape
from server.processes import private_bytes
from server.settings import Settings
from server.warmup import proof
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Say
from server.warmup.warm import once, runs_well

_log = logging.getLogger("gunicorn.error")

# Of the time that a worker may take to boot: what is inside gives up before what is around it.
_RUN, _ATTEMPT = 0.5, 0.75


def trial(found: Sequence[ModelFiles], settings: Settings, remembered: dict[str, tuple[Shape, ...]]) -> ThrowAwayChild:
    """Start the trial of `found`; it gives one `Finding` per model."""

    def work(say: Say) -> None:
        for files in found:
            say(Doing(f"model {files.key}: importing its Python"))
            with fork_safe(f"model {files.key}: importing {files.python}"):
                python = operator.load(files)
            say(Doing(f"model {files.key}: importing its engine"))
            with fork_safe(f"model {files.key}: importing its engine"):
                engine = engine_for(files.path)
            say(Doing(f"model {files.key}: checking its files"))
            engine.check(files.path)
            say(_climb(_Attempt(files, engine, python, settings, remembered.get(files.key, ()), say)))

    return ThrowAwayChild("trial", work, settings.boot_timeout)


def survival(holdings: Sequence[Holding], settings: Settings) -> ThrowAwayChild:
    """Start a child of the master that runs every shape of what the master holds: a fork of exactly this is what workers get."""

    def work(say: Say) -> None:
        for holding in holdings:
            if holding.session:
                once(holding.open(1), lambda where: say(Doing(where)))

    return ThrowAwayChild("trial of the fork", work, settings.boot_timeout)


class _Attempt:
    """One model on its way down the ladder."""

    def __init__(
        self,
        files: ModelFiles,
        engine: Engine,
        python: OperatorPython,
        settings: Settings,
        remembered: tuple[Shape, ...],
        say: Say,
    ) -> None:
        self.files = files
        self.engine = engine
        self.python = python
        self.settings = settings
        self.remembered = remembered
        self.say = say

    def on(self, rung: Rung, why: str) -> Finding:
        """Try one rung in a child; raises `UnshareableError` if it does not hold, `ExitError` if the model is at fault."""
        seconds = _ATTEMPT * self.settings.boot_timeout
        name = f"model {self.files.key} ({rung})"
        return ThrowAwayChild(name, lambda say: self._load(rung, why, say), seconds, self.say).run()[0]

    def _load(self, rung: Rung, why: str, say: Say) -> None:
        say(Doing(f"model {self.files.key}: loading"))
        if rung is not Rung.LIVE:
            session = self.engine.load(self.files.path, self.settings.threads)
            say(self._run(session, rung, why, say))
            return
        with fork_safe(f"model {self.files.key}: loading"):
            session = self.engine.load(self.files.path, 1)
        seconds = _RUN * self.settings.boot_timeout
        name = f"model {self.files.key} after a fork"
        run = ThrowAwayChild(name, lambda inner: inner(self._run(session, rung, why, inner)), seconds, say)
        say(run.run()[0])

    def _run(self, session: Session, rung: Rung, why: str, say: Say) -> Finding:
        # What a live session adds is measured from its fork on, what a worker loads itself from before it ran.
        before = private_bytes() if rung is Rung.LIVE else 0
        model = Model(self.files, self.python, session, self.engine.platform)
        once(model, lambda where: say(Doing(where)))
        model.remembered = tuple(shape for shape in self.remembered if runs_well(model, shape))
        say(Doing(f"model {model.key}: a row alone against the row in a batch"))
        difference = proof.rows_differ(model) if model.plan.batched else ""
        if difference:
            _log.warning("model %s: not batched: %s", model.key, difference)
        say(Doing(f"model {model.key}: golden samples"))
        proof.golden(model)
        return Finding(
            key=model.key,
            platform=model.platform,
            rung=rung,
            why=why,
            batched=not difference,
            shapes=[dict(zip(model.plan.axes, shape, strict=True)) for shape in model.shapes()],
            private_bytes=max(private_bytes() - before, 0),
            remembered=[list(shape) for shape in model.remembered],
        )


def _climb(attempt: _Attempt) -> Finding:
    """The best rung that holds. Raises what the last one failed of."""
    failures: list[str] = []
    *better, last = attempt.engine.rungs(attempt.files.path, attempt.settings.threads)
    for rung, why in better:
        try:
            return attempt.on(rung, "; ".join(filter(None, [*failures, why])))
        except UnshareableError as error:
            _log.warning("%s: trying the next way of sharing", error)
            failures.append(f"{rung}: {error}")
    rung, why = last
    return attempt.on(rung, "; ".join(filter(None, [*failures, why])))
