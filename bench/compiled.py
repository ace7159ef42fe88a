"""Compiled once: a start that compiles, the next one that finds what is compiled, and what a request gains by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

from bench import repository, torch_repository
from bench.client import Connection, infer
from bench.report import Figure, Report, Say
from tests.server import Server

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PATIENCE = 600.0
"""Seconds that a start may take which compiles."""
WORKERS = 2
ROUNDS = 50
BOOTING = ("forked", "loading", "warming", "proving", "waiting")


@dataclass(frozen=True, slots=True)
class Start:
    """One start of two workers, in seconds."""

    ready: float
    """From the command on."""
    compiling: float
    """That the trial compiled, or looked for what is compiled."""
    booting: list[float]
    """From the fork to the open door, by worker."""


def run(folder: Path, say: Say) -> Report:
    """Start twice, with nothing compiled at first; then ask the second beside one that does not compile, in turn."""
    say("making the models")
    compiled, plain = (torch_repository.compiled(folder, compiles=compiles) for compiles in (True, False))
    with _cache(folder / "inductor"):
        say("the first start")
        with _started(compiled) as (_, first):
            pass
        say("the second start")
        with _started(compiled) as (ours, second):
            say("the same without compiling")
            with _started(plain) as (other, control):
                say("requests")
                latencies = _latencies(ours, other)
    figures = [
        Figure(f"{when} start: {what}", read(start), "s", None, read(control))
        for start, when in ((first, "first"), (second, "second"))
        for what, read in READ.items()
    ]
    figures += [Figure(f"latency, {shape} tokens", ms, "ms", None, plain_ms) for shape, (ms, plain_ms) in latencies.items()]
    figures.append(Figure("latency, compiled ÷ not", median(ms / plain_ms for ms, plain_ms in latencies.values())))
    return Report(figures, "the same model, not compiled", {"first": first, "second": second, "control": control})


READ: Mapping[str, Callable[[Start], float]] = {
    "from the command to ready": lambda start: start.ready,
    "compiling, in the trial": lambda start: start.compiling,
    "slowest worker, from the fork to ready": lambda start: max(start.booting),
}


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Have servers that are started inside keep compiled code in `folder`, which is empty."""
    folder.mkdir(mode=0o700)
    before = {name: value for name, value in os.environ.items() if name == VARIABLE}
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        os.environ.update(before)


@contextmanager
def _started(models: Path) -> Iterator[tuple[Server, Start]]:
    began = time.monotonic()
    with Server(models, ready=False, workers=WORKERS) as server:
        server.wait_ready(PATIENCE)
        ready = time.monotonic() - began
        page = server.status()
        booting = [sum(worker["phases"].get(phase, 0.0) for phase in BOOTING) for worker in page["workers"]]
        yield server, Start(ready, page["models"][0]["compile_seconds"] or 0.0, booting)


def _latencies(*servers: Server) -> dict[str, list[float]]:
    """The median latency of each shape on each server, in milliseconds."""
    found: dict[str, list[float]] = {}
    with ExitStack() as opened:
        connections = [opened.enter_context(Connection(server.port)) for server in servers]
        for rows, length in product(torch_repository.COMPILED_SIZES, torch_repository.COMPILED_LENGTHS):
            request = infer("embed", repository.texts(rows, length * 3 // 4))
            times = [[connection.exchange(request) for connection in connections] for _ in range(ROUNDS)]
            found[f"{rows}x{length}"] = [median(each) * 1e3 for each in zip(*times, strict=True)]
    return found
