"""The memory of a server: what its processes hold once they have served."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench.client import Connection, one_each
from bench.report import Say
from tests.server import Server


@dataclass(frozen=True, slots=True)
class Held:
    """What a server's processes hold, in bytes."""

    rungs: dict[str, str]
    """By model."""
    pss: int
    private: list[int]
    """By worker."""

    @property
    def worker(self) -> float:
        """The private memory of a worker."""
        return median(self.private)


def measure(models: Path, say: Say, workers: int, threads: int, *turns: Sequence[bytes]) -> list[Held]:
    """What the server holds after each of `turns`, which are requests for all workers to share."""
    say(f"{models.name}, {workers} workers of {threads} threads")
    found: list[Held] = []
    with Server(models, workers=workers, threads=threads) as server:
        with one_each(server) as connections:
            for turn in turns:
                _serve(connections, turn)
                found.append(_held(server))
        served = [worker["requests"] for worker in server.status()["workers"]]
        share = sum(map(len, turns)) // workers
        if len(served) != workers or min(served) < share:
            message = f"{workers} workers were to answer {share} requests each, they answered {served}"
            raise RuntimeError(message)
    return found


def _held(server: Server) -> Held:
    page = server.status()
    pss = sum(psutil.Process(pid).memory_full_info().pss for pid in server.processes())
    private = [psutil.Process(worker["pid"]).memory_full_info().uss for worker in page["workers"]]
    return Held({model["name"]: model["rung"] for model in page["models"]}, pss, private)


def _serve(connections: Sequence[Connection], requests: Sequence[bytes]) -> None:
    share = len(requests) // len(connections)

    def serve(place: int) -> None:
        for request in requests[place * share : (place + 1) * share]:
            connections[place].exchange(request)

    with ThreadPoolExecutor(len(connections)) as pool:
        list(pool.map(serve, range(len(connections))))
