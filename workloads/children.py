"""What a load test starts: it ends with it, whatever ends that; only a master that another one has started outlives a SIGKILL."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.machine import DIES_WITH_US
from tests.server import ROOT, Server


def server(models: Path, *arguments: str, ready: bool = True, **settings: object) -> Server:
    """A server of `models`, not yet started; see `Server`."""
    made = Server(models, *arguments, ready=ready, **settings)
    made.command[:0] = DIES_WITH_US
    return made


def finish(command: Sequence[str]) -> int:
    """Run a program of ours in the project's root to its end; its status. If that is broken off, it is told to end, and does."""
    with subprocess.Popen([*DIES_WITH_US, *command], cwd=ROOT, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own program
        try:
            return process.wait()
        finally:
            process.terminate()
