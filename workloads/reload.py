"""New models and new code under load: HUP, HUP with nothing new, USR2; HUP and USR2 with a model that fails to warm.

`locust -f workloads/reload.py --headless -H http://127.0.0.1:8000 --repository models`
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Figure
from server.processes import memory
from tests.models import failing, identity, put
from workloads.run import Run
from workloads.watch import ended, replaced, tree, until
from workloads.workload import Workload, users

BROKEN = "broken"
"""A model that passes its trials, and fails when a worker warms it; each time another, so that nobody reads of the last one."""
_turns = count(1)


def _act(run: Run) -> None:
    """In each round a window with each event, and one without that is as long as the first."""
    for turn in range(run.options.windows):
        seconds = 0.0
        for event in _chosen(run):
            run.say(f"{event}, window {turn + 1} of {run.options.windows}")
            window = run.window(event, lambda event=event: EVENTS[event](run), seconds)  # type: ignore[misc]
            seconds = seconds or window.end - window.begin
        run.window(seconds=seconds)
    pss = []
    for turn in range(run.options.hups):
        run.say(f"memory, HUP {turn + 1} of {run.options.hups}")
        _touch(run)
        _renew(run)
        pss.append(sum(memory(pid).get("Pss", 0) for pid in tree(run.master.pid())))
    run.details["pss bytes"] = pss


def _judge(run: Run) -> list[Figure]:
    """Nothing fails; what a new generation may cost is bounded where the code stays the same."""
    figures = [run.failed()]
    for event in _chosen(run):
        p99, slowest = (run.bound("p99"), run.bound("slowest")) if event in (NEW, SAME) else (None, None)
        figures.append(run.compare(f"p99, {event} ÷ without", event, 0.99, p99))
        figures.append(run.compare(f"slowest, {event} ÷ without", event, 1, slowest))
    if pss := run.details["pss bytes"]:
        few = len(pss) // 4 or 1
        grown = median(pss[-few:]) / median(pss[:few])
        figures.append(Figure(f"PSS of all processes in {len(pss)} HUPs, end ÷ beginning", grown, "×", run.bound("pss")))
    return figures


def _chosen(run: Run) -> list[str]:
    asked = run.options.events.split(",")
    return [event for event in EVENTS if event in asked and (run.ours or event == NEW)]


def _new(run: Run) -> None:
    _touch(run)
    _same(run)


def _same(run: Run) -> None:
    _renew(run)
    run.rest()


def _touch(run: Run) -> None:
    """Make it another model, as far as our server can see: it tries, loads and warms all of it."""
    if run.ours:
        Path(run.options.repository, run.options.model, "model.toml").touch()


def _renew(run: Run) -> None:
    before = run.master.workers()
    os.kill(run.master.pid(), signal.SIGHUP)
    replaced(run.master, before)


def _broken(run: Run, number: signal.Signals) -> None:
    """What a signal asks for is refused in words, and the same workers serve on."""
    before, generation = run.master.workers(), run.status()["generation"]
    name = f"{BROKEN}-{next(_turns)}"
    folder = put(Path(run.options.repository), name, identity(), python=failing("worker", "raise RuntimeError"))
    run.closing.callback(shutil.rmtree, folder, ignore_errors=True)  # also where the run is told to end before it is removed
    try:
        os.kill(run.master.pid(), number)
        until(lambda: f"{name}/" in " ".join(run.status()["reasons"]), "what failed to be refused")
        until(run.master.settled, "all that came of it to leave")
    finally:
        shutil.rmtree(folder)
    if (run.master.workers(), run.status()["generation"]) != (before, generation):
        message = f"workers {before} of generation {generation} were to serve on, not {run.master.workers()}"
        raise RuntimeError(message)
    run.rest()


def _usr2(run: Run) -> None:
    """Another master serves, and the old one has gone."""
    old, before = run.master.pid(), run.master.workers()
    os.kill(old, signal.SIGUSR2)
    until(lambda: ended(old) and run.master.pid() != old, "another master")
    replaced(run.master, before)
    run.rest()


NEW, SAME = "HUP", "HUP with nothing new"
EVENTS: Mapping[str, Callable[[Run], None]] = {
    NEW: _new,
    SAME: _same,
    "broken HUP": partial(_broken, number=signal.SIGHUP),
    "USR2": _usr2,
    "broken USR2": partial(_broken, number=signal.SIGUSR2),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "events": {"default": ",".join(EVENTS), "help": "which, with commas in between"},
    "hups": {"type": int, "default": 0, "help": "how many more HUPs at the end, to see whether memory grows"},
    "repository": {"default": "models", "help": "the model repository, where a broken model is put and taken away"},
}
Users = users(Workload("reload", _act, _judge, {"p99": 1.2, "slowest": 2.0, "pss": 1.05}, OPTIONS))
