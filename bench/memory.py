"""One copy: the memory of eight workers against that of one, each having served, with half a gigabyte of weights."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench import repository
from bench.client import Connection, infer, one_each
from bench.report import Figure, Report, Say
from tests.server import Server

BOUND = 1.15
MANY = 8
REQUESTS = 1000
"""Requests that each server answers before it is looked at, spread evenly over its workers."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a server's processes hold, in bytes."""

    rung: str
    pss: int
    private: list[int]
    """By worker."""


def run(folder: Path, say: Say) -> Report:
    """Measure one worker and many; then, where a session cannot be shared (two threads), one and two."""
    say("making the model")
    models = repository.wide(folder)
    one, many = (_measure(models, say, workers, 1, REQUESTS) for workers in (1, MANY))
    # The control needs no thousand requests: its copies are there from the start.
    alone, two = (_measure(models, say, workers, 2, 20 * workers) for workers in (1, 2))
    control = 1 + (MANY - 1) * (two.pss - alone.pss) / alone.pss
    return Report(
        [
            Figure(f"memory of the whole server, {MANY} workers ÷ 1", many.pss / one.pss, "", BOUND, control),
            Figure(
                "a worker's private memory ÷ weights",
                median(many.private) / repository.WEIGHTS,
                "",
                None,
                median(two.private) / repository.WEIGHTS,
            ),
            Figure("memory of the whole server, 1 worker", one.pss / 1e6, "MB", None, alone.pss / 1e6),
            Figure(f"memory of the whole server, {MANY} workers", many.pss / 1e6, "MB"),
        ],
        f"a session in each worker (WARMFORK_THREADS=2), {MANY} workers reckoned from 2",
        {"weights": repository.WEIGHTS, "one": one, "many": many, "control one": alone, "control two": two},
    )


def _measure(models: Path, say: Say, workers: int, threads: int, requests: int) -> Held:
    say(f"{workers} workers of {threads} threads")
    with Server(models, workers=workers, threads=threads) as server:
        with one_each(server) as connections:
            _serve(connections, requests)
        page = server.status()
        served = [worker["requests"] for worker in page["workers"]]
        if len(served) != workers or min(served) < requests // workers:
            message = f"{workers} workers were to answer {requests // workers} requests each, they answered {served}"
            raise RuntimeError(message)
        pss = sum(psutil.Process(pid).memory_full_info().pss for pid in server.processes())
        held = [psutil.Process(worker["pid"]).memory_full_info().uss for worker in page["workers"]]
    return Held(page["models"][0]["rung"], pss, held)


def _serve(connections: Sequence[Connection], requests: int) -> None:
    request = infer("wide", repository.row(1, repository.WIDTH))

    def serve(connection: Connection) -> None:
        for _ in range(requests // len(connections)):
            connection.exchange(request)

    with ThreadPoolExecutor(len(connections)) as pool:
        list(pool.map(serve, connections))
