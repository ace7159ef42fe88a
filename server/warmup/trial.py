"""The trial: a throw-away child loads every model from disk, finds out how it can be shared, and runs it in every shape.

It decides the rung of the ladder for each model: a rung holds if a child on it survives loading, a fork where the rung has one,
every shape and the golden samples. Whatever a model does to its process, it does to a child.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engines.catalogue import engine_for
from server.fork_safety import fork_safe
from server.models import operator
from server.models.holding import Holding
from server.models.repository import ModelFiles
from server.models.shapes import Shape
from server.models.source import source, text
from server.settings import Settings
from server.warmup.attempt import Attempt, Parts
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Say
from server.warmup.polite import process_stands_back
from server.warmup.warm import once
from server.warmup.witness import watched


def trial(
    found: Sequence[ModelFiles], settings: Settings, remembered: dict[str, tuple[Shape, ...]], *, polite: bool
) -> ThrowAwayChild:
    """Start the trial of `found`, behind those that serve if `polite`; it gives one `Finding` per model."""

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
            engine.check(source(files, python))
            say(Doing(f"model {files.key}: loading its tokenizer"))
            with fork_safe(f"model {files.key}: loading {files.tokenizer}"):
                tokenizer = text(files)
            parts = Parts(files, python, tokenizer, engine)
            say(Attempt(parts, settings, remembered.get(files.key, ()), say).climb())

    return ThrowAwayChild("trial", work, settings.boot_timeout)


def survival(holdings: Sequence[Holding], settings: Settings, *, polite: bool) -> ThrowAwayChild:
    """Start a child of the master that runs every shape of what the master holds: a fork of exactly this is what workers get."""

    def work(say: Say) -> None:
        if polite:
            process_stands_back()
        for holding in holdings:
            if holding.session:
                once(holding.open(settings.threads), lambda where: say(Doing(where)))

    return ThrowAwayChild("trial of the fork", work, settings.boot_timeout)
