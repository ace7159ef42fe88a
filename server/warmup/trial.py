"""The trial: a throw-away child loads every model from disk, finds out how it can be shared, and runs it in every shape.

It decides the rung of the ladder for each model: a rung holds if a child on it survives loading, a fork where the rung has one,
every shape and the golden samples. Whatever a model does to its process, it does to a child.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from server.engines.catalogue import engine_for
from server.engines.engine import Engine
from server.exits import ConfigurationError
from server.fork_safety import fork_safe
from server.gpus import Allotment, see
from server.models import operator
from server.models.finding import Taken
from server.models.holding import Holding
from server.models.model import Model
from server.models.repository import ModelFiles
from server.models.shapes import Shape
from server.models.source import source, text
from server.processes import private_bytes
from server.settings import Settings
from server.warmup.attempt import Attempt, Parts
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Say
from server.warmup.meter import Meter
from server.warmup.polite import process_stands_back
from server.warmup.warm import once
from server.warmup.witness import watched

_log = logging.getLogger("gunicorn.error")


def trial(
    found: Sequence[ModelFiles],
    settings: Settings,
    remembered: dict[str, tuple[Shape, ...]],
    gpu: Allotment | None,
    *,
    polite: bool,
) -> ThrowAwayChild:
    """Start the trial of `found`, behind those that serve if `polite`; it gives one `Finding` per model.

    `gpu`: what it may use of one, where there are any.
    """

    def work(say: Say) -> None:
        if polite:
            process_stands_back()
        for files in found:
            say(Doing(f"model {files.key}: importing its engine"))
            with fork_safe(f"model {files.key}: importing its engine"):
                engine = engine_for(files.path)
            say(Doing(f"model {files.key}: importing its Python"))
            with watched(f"model {files.key}: importing {files.python}", files):
                python = operator.load(files)
            say(Doing(f"model {files.key}: checking its files"))
            own = gpu if gpu and _on_gpu(files, engine, settings) else None
            engine.check(source(files, python, own))
            say(Doing(f"model {files.key}: loading its tokenizer"))
            with fork_safe(f"model {files.key}: loading {files.tokenizer}"):
                tokenizer = text(files)
            parts = Parts(files, python, tokenizer, engine, own)
            say(Attempt(parts, settings, remembered.get(files.key, ()), say).climb())

    return ThrowAwayChild("trial", work, settings.boot_timeout)


def _on_gpu(files: ModelFiles, engine: Engine, settings: Settings) -> bool:
    """Whether a model runs on a GPU where there is one. Raises `ConfigurationError` if it can't, and may not run elsewhere."""
    if files.toml.device == "cpu":
        return False
    why = engine.no_gpu(files.path)
    if why and settings.device != "auto":
        message = f'model {files.key}: WARMFORK_DEVICE={settings.device}: {why}; or say device = "cpu" in its model.toml'
        raise ConfigurationError(message)
    if why:
        _log.warning("model %s: runs on the processor: %s", files.key, why)
    return not why


def survival(holdings: Sequence[Holding], settings: Settings, gpu: Allotment | None, *, polite: bool) -> ThrowAwayChild:
    """Start a child of the master that runs every shape of what the master holds: a fork of exactly this is what workers get.

    Of models for GPUs it runs them all, as a worker does, with what it may use of `gpu`, and says what they take together.
    """
    gpu = gpu if any(holding.on_gpu for holding in holdings) else None

    def work(say: Say) -> None:
        if gpu:
            see(gpu.gpu)
        if polite:
            process_stands_back(breaks=not gpu)
        models: list[Model] = []  # as a worker has them: all at once
        private = 0
        with Meter(gpu.gpu) if gpu else nullcontext() as meter:
            for holding in holdings:
                if holding.session or holding.on_gpu:
                    before = private_bytes()
                    models.append(holding.open(settings.threads, gpu))
                    _everywhere(models[-1], lambda where: say(Doing(where)))
                    private += holding.on_gpu * max(private_bytes() - before, 0)
        if meter:
            say(Taken(meter.bytes, private))

    return ThrowAwayChild("trial of the fork", work, settings.boot_timeout)


def _everywhere(model: Model, say: Callable[[str], None]) -> None:
    """Run every shape in two threads, as a worker does that warms and serves: on a GPU each has workspaces of its own."""
    once(model, say)
    if model.session.overlaps:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(once, model, say).result()
