"""How long a start takes, by phase: information without a bound."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from bench import repository
from bench.report import Figure, Report, Say
from tests.server import PATIENCE, Server

STARTS = 5
MASTER = ("trying", "loading", "forking", "booting")
WORKER = ("loading", "warming", "proving", "waiting")


def run(folder: Path, say: Say) -> Report:
    """Start the demo image model with two workers, several times."""
    say("making the model")
    models = repository.resnet50(folder)
    starts = []
    for start in range(STARTS):
        say(f"start {start + 1} of {STARTS}")
        starts.append(_start(models))
    figures = [Figure(phase, median(found[phase] for found in starts), "s") for phase in starts[0]]
    return Report(figures, details={"starts": starts})


def _start(models: Path) -> dict[str, float]:
    """Seconds by phase: the master's one after another, then those of the slowest worker, then all from the command to ready."""
    began = time.monotonic()
    with Server(models, ready=False, workers=2) as server:
        entered: dict[str, float] = {}
        while True:
            status, page = server.probe("/status")
            now = time.monotonic()
            if now - began > PATIENCE:
                message = f"not ready in {PATIENCE:g} s:\n{server.log}"
                raise TimeoutError(message)
            if status:
                # By the page's own clock, so that how often we look does not matter.
                entered.setdefault(page["phase"], now - page["phase_seconds"])
                if page["ready"]:
                    break
            time.sleep(0.02)
    moments = [*sorted(entered.items(), key=lambda each: each[1])]
    ends = [moment for _, moment in moments[1:]]
    spent = {phase: end - start for (phase, start), end in zip(moments, ends, strict=False)}
    found = {f"master: {phase}": spent.get(phase, 0.0) for phase in MASTER}
    for phase in WORKER:
        found[f"slowest worker: {phase}"] = max(worker["phases"].get(phase, 0.0) for worker in page["workers"])
    return {**found, "from the command to ready": now - began}
