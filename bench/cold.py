"""No cold request: a worker's first answer in every shape against its steady ones, over HTTP, beside the same without warmup."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import repository
from bench.client import Connection, get, infer, one_each
from bench.report import Figure, Report, Say
from tests.server import Server

BOUND = 1.25
"""The most that a first request may take, in steady ones."""
STARTS = 5
STARTS_OF_FOUR = 1
ROUNDS = 7
PAUSE = 0.1
"""Seconds."""
CONTROL = ("-c", str(Path(__file__).with_name("cold_conf.py")))


@dataclass(frozen=True, slots=True)
class First:
    """One worker's first request in one batch size, in the order in which they were sent; milliseconds."""

    worker: int
    batch: int
    first_ms: float
    steady_ms: float
    rested_ms: float
    """One that comes after a pause, which finds the machine as idle as the first one does."""

    @property
    def ratio(self) -> float:
        """First in steady ones."""
        return self.first_ms / self.steady_ms


def run(folder: Path, say: Say) -> Report:
    """Measure starts of one worker and of four, each with and without warmup in turn."""
    say("making the models")
    images = {size: infer("resnet50", repository.image(size)) for size in repository.SIZES}
    rows = {size: infer("dense", repository.row(size)) for size in repository.SIZES}
    resnet50, small = repository.resnet50(folder), repository.small(folder)
    one = _both(_Case("resnet50, one worker", resnet50, images), say)
    four = _both(_Case("resnet50, four workers", resnet50, images, STARTS_OF_FOUR, workers=4), say)
    tiny = _both(_Case("dense 64, one worker", small, rows, rounds=20 * ROUNDS, pauses=ROUNDS), say)
    return Report(
        [
            Figure("resnet50: first ÷ steady, one worker", _ratio(one[0]), "", BOUND, _ratio(one[1])),
            Figure("resnet50: the process's very first ÷ steady", _very_first(one[0]), "", None, _very_first(one[1])),
            Figure("resnet50: first ÷ steady, each of four workers", _ratio(four[0]), "", BOUND, _ratio(four[1])),
            Figure("resnet50: worst first ÷ steady of them all", _worst(one[0] + four[0]), "", None, _worst(one[1] + four[1])),
            Figure("dense 64: first ÷ steady, one worker", _ratio(tiny[0]), "", None, _ratio(tiny[1])),
            Figure("dense 64: the process's very first ÷ steady", _very_first(tiny[0]), "", None, _very_first(tiny[1])),
            Figure("dense 64: one after a pause ÷ steady", _rested(tiny[0]), "", None, _rested(tiny[1])),
        ],
        "the same server with warmup and proof switched off",
        {"one": one, "four": four, "dense 64": tiny},
    )


Starts = list[list[First]]


@dataclass(frozen=True, slots=True)
class _Case:
    what: str
    models: Path
    requests: Mapping[int, bytes]
    """By batch size."""
    starts: int = STARTS
    workers: int = 1
    rounds: int = ROUNDS
    pauses: int = 1


def _both(case: _Case, say: Say) -> tuple[Starts, Starts]:
    """Starts with warmup, and without, in turn. Each begins with another batch size."""
    sizes = list(case.requests)
    warm: Starts = []
    cold: Starts = []
    for start in range(case.starts):
        turn = start % len(sizes)
        for found, arguments in ((warm, ()), (cold, CONTROL)):
            say(f"{case.what}, start {start + 1} of {case.starts}{', control' if arguments else ''}")
            with Server(case.models, *arguments, workers=case.workers) as server:
                found.append(_start(server, case, sizes[turn:] + sizes[:turn]))
    return warm, cold


def _start(server: Server, case: _Case, order: Sequence[int]) -> list[First]:
    with Connection(server.management_port) as other:
        other.exchange(get("/livez"))  # so that this client is not cold itself
    with one_each(server) as connections:
        places = [(worker, batch) for worker in range(len(connections)) for batch in order]
        first = {(worker, batch): connections[worker].exchange(case.requests[batch]) for worker, batch in places}
        steady: dict[tuple[int, int], list[float]] = {place: [] for place in places}
        for _ in range(case.rounds):
            for worker, batch in places:
                steady[worker, batch].append(connections[worker].exchange(case.requests[batch]))
        rested: dict[tuple[int, int], list[float]] = {place: [] for place in places}
        for _ in range(case.pauses):
            for worker, batch in places:
                time.sleep(PAUSE)
                rested[worker, batch].append(connections[worker].exchange(case.requests[batch]))
    idle = [worker["slot"] for worker in server.status()["workers"] if worker["requests"] == 0]
    if idle:
        message = f"worker {idle[0]} served nothing"
        raise RuntimeError(message)
    return [First(*place, *(median(times) * 1e3 for times in ([first[place]], steady[place], rested[place]))) for place in places]


def _ratio(starts: Starts) -> float:
    return median(each.ratio for start in starts for each in start)


def _very_first(starts: Starts) -> float:
    return median(start[0].ratio for start in starts)


def _worst(starts: Starts) -> float:
    return max(each.ratio for start in starts for each in start)


def _rested(starts: Starts) -> float:
    return median(each.rested_ms / each.steady_ms for start in starts for each in start)
