"""First requests: each worker's first in every shape, and its steady ones, with warmup and without."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.client import Connection, get, one_each
from bench.report import Say
from tests.server import Server

STARTS = 5
ROUNDS = 7
PAUSE = 0.1
"""Seconds."""
DRIVER_SECONDS = 240.0
"""How long a start may take: a driver takes its time."""
CONTROL = ("-c", str(Path(__file__).with_name("cold_conf.py")))


@dataclass(frozen=True, slots=True)
class First:
    """One worker's first request in one shape, in the order in which they were sent; milliseconds."""

    worker: int
    shape: str
    first_ms: float
    steady_ms: float
    rested_ms: float
    """One that comes after a pause, which finds the machine as idle as the first one does."""

    @property
    def ratio(self) -> float:
        """First in steady ones."""
        return self.first_ms / self.steady_ms


Starts = list[list[First]]
Both = tuple[Starts, Starts]
"""With warmup and without."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is started, and asked."""

    what: str
    models: Path
    requests: Mapping[str, bytes]
    """By shape."""
    starts: int = STARTS
    controls: int = STARTS
    """How many of the starts are made without warmup too."""
    workers: int = 1
    rounds: int = ROUNDS
    pauses: int = 1
    device: str = "cpu"


def both(case: Case, say: Say) -> Both:
    """Starts with warmup, and without, in turn. Each begins with another shape."""
    shapes = list(case.requests)
    warm: Starts = []
    cold: Starts = []
    for start in range(case.starts):
        turn = start % len(shapes)
        for found, arguments in ((warm, ()), (cold, CONTROL))[: 2 if start < case.controls else 1]:
            say(f"{case.what}, start {start + 1} of {case.starts}{', control' if arguments else ''}")
            with Server(case.models, *arguments, ready=False, workers=case.workers, device=case.device) as server:
                server.wait_ready(DRIVER_SECONDS)
                found.append(_start(server, case, shapes[turn:] + shapes[:turn]))
    return warm, cold


def _start(server: Server, case: Case, order: Sequence[str]) -> list[First]:
    with Connection(server.management_port) as other:
        other.exchange(get("/livez"))  # so that this client is not cold itself
    with one_each(server) as connections:
        places = [(worker, shape) for worker in range(len(connections)) for shape in order]
        first = {(worker, shape): connections[worker].exchange(case.requests[shape]) for worker, shape in places}
        steady: dict[tuple[int, str], list[float]] = {place: [] for place in places}
        for _ in range(case.rounds):
            for worker, shape in places:
                steady[worker, shape].append(connections[worker].exchange(case.requests[shape]))
        rested: dict[tuple[int, str], list[float]] = {place: [] for place in places}
        for _ in range(case.pauses):
            for worker, shape in places:
                time.sleep(PAUSE)
                rested[worker, shape].append(connections[worker].exchange(case.requests[shape]))
    idle = [worker["slot"] for worker in server.status()["workers"] if worker["requests"] == 0]
    if idle:
        message = f"worker {idle[0]} served nothing"
        raise RuntimeError(message)
    return [First(*place, *(median(times) * 1e3 for times in ([first[place]], steady[place], rested[place]))) for place in places]
