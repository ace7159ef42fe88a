"""One model on its way down the ladder of sharing: which rung holds, and what a worker pays for it there."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from server.engines.engine import COMPILED, Engine, Precision, Rung, Session, Source
from server.exits import ModelError, UnshareableError
from server.features.text import Text
from server.gpus import Allotment, see
from server.models.finding import Finding
from server.models.model import Model
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.shapes import Shape
from server.models.source import shares_compiled, source
from server.processes import lead_group, private_bytes, tasks
from server.settings import Settings
from server.warmup import proof
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Say
from server.warmup.warm import once, runs_well
from server.warmup.witness import watched

_log = logging.getLogger("gunicorn.error")

# Of the time that a worker may take to boot: what is inside gives up before what is around it.
_RUN, _ATTEMPT = 0.5, 0.75


@dataclass(frozen=True)
class Parts:
    """A model without its session."""

    files: ModelFiles
    python: OperatorPython
    text: Text | None
    engine: Engine
    gpu: Allotment | None = None

    @property
    def source(self) -> Source:
        """What the engine loads."""
        return source(self.files, self.python, self.gpu)

    def model(self, session: Session) -> Model:
        """The model around a session of its engine."""
        return Model(self.files, self.python, session, self.engine.platform, self.text, precision=self.source.precision)


class Attempt:
    """One model on its way down the ladder."""

    def __init__(self, parts: Parts, settings: Settings, remembered: tuple[Shape, ...], say: Say) -> None:
        """Try `parts` under `settings`; `remembered` are shapes met cold before, `say` hears the step at hand."""
        self.parts = parts
        self.source = parts.source
        self.key = parts.files.key
        self.settings = settings
        self.remembered = remembered
        self.say = say
        self.breaks = not self.source.gpu
        """Whether a child that stands back takes breaks: a driver's calls may not bear to be interrupted."""

    def climb(self) -> Finding:
        """The best rung that holds. Raises what the last one failed of."""
        seconds = self._compiled()
        failures: list[str] = []
        *better, last = self.parts.engine.rungs(self.source, self.settings.threads)
        for rung, why in better:
            try:
                return self._on(rung, [*failures, why], seconds)
            except UnshareableError as error:
                _log.warning("%s: trying the next way of sharing", error)
                failures.append(f"{rung}: {error}")
        rung, why = last
        return self._on(rung, [*failures, why], seconds)

    def _compiled(self) -> float | None:
        """Compile every shape in a child of its own, which may start threads: from then on it is found on disk."""
        if not self.source.compiled:
            return None
        start = time.monotonic()

        def work(say: Say) -> None:
            lead_group()  # the compiler is a program of its own
            say(Doing(f"model {self.key}: compiling"))
            self._see()
            session = self.parts.engine.load(self.source, self.settings.threads)
            session.enter(self.settings.threads, self.source.gpu)
            once(self.parts.model(session), lambda where: say(Doing(f"{where}, compiling")))

        child = ThrowAwayChild(
            f"model {self.key} (compiling)", work, _ATTEMPT * self.settings.boot_timeout, self.say, breaks=self.breaks
        )
        child.leads = True
        try:
            child.run()
        except ModelError as error:
            message = f"{error}; what was compiled before lies in {os.environ.get(COMPILED)} and may be removed"
            raise ModelError(message) from error
        return time.monotonic() - start

    def _see(self) -> None:
        """In a child that runs it, and forks no more: see the GPU that it is to run on."""
        if self.source.gpu:
            see(self.source.gpu.gpu)

    def _on(self, rung: Rung, reasons: Sequence[str], compile_seconds: float | None) -> Finding:
        """Try one rung in a child; raises `UnshareableError` if it does not hold, `ExitError` if the model is at fault."""
        why = "; ".join(filter(None, reasons))
        seconds = _ATTEMPT * self.settings.boot_timeout
        child = ThrowAwayChild(
            f"model {self.key} ({rung})", lambda say: self._load(rung, why, say), seconds, self.say, breaks=self.breaks
        )
        return msgspec.structs.replace(child.run()[0], compile_seconds=compile_seconds)

    def _load(self, rung: Rung, why: str, say: Say) -> None:
        say(Doing(f"model {self.key}: loading"))
        if rung is not Rung.LIVE:
            self._see()
            session = self.parts.engine.load(self.source, self.settings.threads)
            say(self._run(session, rung, why, say))
            return
        with watched(f"model {self.key}: loading", self.parts.files):
            session = self.parts.engine.load(self.source, 1)
            if shares_compiled(self.source, self.settings.threads):
                once(self.parts.model(session), lambda where: say(Doing(f"{where}, finding it compiled")))
        seconds = _RUN * self.settings.boot_timeout
        name = f"model {self.key} after a fork"
        run = ThrowAwayChild(name, lambda inner: inner(self._run(session, rung, why, inner)), seconds, say, breaks=self.breaks)
        say(run.run()[0])

    def _run(self, session: Session, rung: Rung, why: str, say: Say) -> Finding:
        # What a live session adds is measured from its fork on, what a worker loads itself from before it ran.
        before = private_bytes() if rung is Rung.LIVE else 0
        gpu = self.source.gpu
        self._see()
        session.enter(self.settings.threads, gpu)
        model, threads = self.parts.model(session), tasks()
        once(model, lambda where: say(Doing(where)))
        graphs = session.graphs  # of what is declared, and not of what a client has sent
        model.remembered = tuple(shape for shape in self.remembered if runs_well(model, shape))
        say(Doing(f"model {model.key}: a row alone against the row in a batch"))
        difference = proof.rows_differ(model) if model.plan.batched else ""
        if difference:
            _log.warning("model %s: not batched: %s", model.key, difference)
        say(Doing(f"model {model.key}: another thread"))
        bound = ""
        if self.settings.threads == 1:
            begun = [] if gpu else [name for task, name in tasks().items() if task not in threads]
            # Threads that a run begins have the priority of the thread that it runs in, and keep it.
            bound = f"model {model.key}: its runs begin threads: {begun}" if begun else proof.bound_to_thread(model)
        if bound and gpu:
            message = f"{bound}; on a GPU runs are in a thread of their own"
            raise ModelError(message)
        if bound:
            _log.warning("%s; it warms in the thread that serves alone", bound)
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
            device="cuda" if gpu else "cpu",
            graphs=graphs,
            bound=bound,
            remembered=[list(shape) for shape in model.remembered],
            precision=self.source.precision,
            difference=self._difference(model, say),
        )

    def _difference(self, model: Model, say: Say) -> float | None:
        """How far a model of another precision is from float32; raises `ModelError` if that is past its bound."""
        torch, where = model.files.toml.torch, f"model {self.key}: beside float32"
        if self.source.precision is Precision.FP32:
            if torch.precision is not Precision.FP32:
                where = self.source.gpu.gpu.name if self.source.gpu else "this processor"
                _log.warning("model %s: runs in fp32, since %s has no %s", self.key, where, torch.precision)
            return None
        say(Doing(where))
        # On the processor, wherever the model is.
        plain = self.parts.engine.load(replace(self.source, precision=Precision.FP32, compiled=False, gpu=None), 1)
        found = proof.largest_difference(model, self.parts.model(plain))
        bound = math.inf if torch.max_difference is None else torch.max_difference
        if found > bound or found == math.inf:
            message = f"{where}, {torch.precision} differs by {found:.3g}, torch.max_difference is {torch.max_difference}"
            raise ModelError(message)
        return found
