"""A probe never waits behind an inference: its latency during a load, and while every worker is in one long inference."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench import load, repository
from bench.client import Connection, get, infer, one_each
from bench.report import Figure, Report, Say
from tests.server import Server

BOUND_MS = 100
"""The most that the 95th percentile may be."""
LOAD_SECONDS = 10.0
BUSY_SECONDS = 5.0
PAUSE = 0.01
"""Seconds between two probes."""
WORKERS = 2
WORKERS_OWN = "/v2/health/live"
"""What a worker answers itself: while it is in an inference, only after that."""

Times = Mapping[str, list[float]]


def run(folder: Path, say: Say) -> Report:
    """Measure both."""
    say("making the models")
    image, spinning = repository.resnet50(folder), repository.spinning(folder, BUSY_SECONDS)
    with Server(image, workers=WORKERS) as server:
        say(f"{LOAD_SECONDS:g} s of load")
        loaded = _under_load(server)
    with Server(spinning, workers=WORKERS) as server:
        say(f"every worker busy for {BUSY_SECONDS:g} s")
        busy = _while_busy(server)
    figures = [
        *_figures("under load", loaded, ("/livez", "/startupz")),
        *_figures("while all workers are busy", busy, ("/readyz",)),
    ]
    return Report(figures, f"{WORKERS_OWN}, which a worker answers", {"load": loaded, "busy": busy})


def _figures(when: str, times: Times, paths: tuple[str, ...]) -> list[Figure]:
    figures = []
    for path in paths:
        for name, share, bound in (("p50", 50, None), ("p95", 95, BOUND_MS), ("max", 100, None)):
            value, control = (float(np.percentile(times[each], share)) for each in (path, WORKERS_OWN))
            figures.append(Figure(f"{path} {when}, {name}", value, "ms", bound, control))
    return figures


def _under_load(server: Server) -> Times:
    generator = load.start(server.port, infer("resnet50", repository.image(4)), 4 * WORKERS, LOAD_SECONDS)
    asked = [("/livez", server.management_port), ("/startupz", server.management_port), (WORKERS_OWN, server.port)]
    times = _probe(asked, LOAD_SECONDS)
    load.finish(generator)
    return times


def _while_busy(server: Server) -> Times:
    row = np.full((1, 64), 13, np.float32)
    with Connection(server.port) as other, one_each(server) as connections:
        for connection in connections:
            connection.socket.sendall(infer("spinning", {"x": row}))
        time.sleep(10 * PAUSE)  # until they run
        start = time.perf_counter()
        other.socket.sendall(get(WORKERS_OWN))
        times = _probe([("/readyz", server.management_port)], BUSY_SECONDS * 0.9)
        early = select.select([connection.socket for connection in connections], [], [], 0)[0]
        if early:
            message = "a worker was not busy all the time"
            raise RuntimeError(message)
        for connection in connections:
            connection.read()
        other.read()
        return {**times, WORKERS_OWN: [(time.perf_counter() - start) * 1e3]}


def _probe(asked: Sequence[tuple[str, int]], seconds: float) -> Times:
    """Ask each path of its port again and again; milliseconds, connecting included."""
    times: dict[str, list[float]] = {path: [] for path, _ in asked}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path, port in asked:
            start = time.perf_counter()
            with Connection(port) as connection:
                connection.exchange(get(path))
            times[path].append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE)
    return times
