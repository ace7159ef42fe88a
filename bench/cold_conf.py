"""The project's gunicorn configuration with warmup and proof switched off: what a server without them would be."""

import runpy
from pathlib import Path

globals().update(runpy.run_path(str(Path(__file__).parents[1] / "gunicorn.conf.py")))

from server.barrier import Point  # noqa: E402 - after the configuration, whose first import sets the environment
from server.states import Event  # noqa: E402
from server.worker.boot import Boot  # noqa: E402


def _warm(boot: Boot) -> None:
    boot.enter(Event.WARM)


def _prove(boot: Boot, *_: object) -> None:
    boot.enter(Event.PROVE)
    boot.arrive(Point.PROVEN)


Boot.warm = _warm  # type: ignore[assignment, method-assign]
Boot.prove = _prove  # type: ignore[assignment, method-assign]
