"""Latency at half of capacity, open loop: requests come when they come, as from many clients who know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import repository, rivals, rounds
from bench.client import infer
from bench.load import Load
from bench.machine import pinned
from bench.report import Figure, Report, Say
from bench.rounds import Series
from tests.server import Server

CONNECTIONS = 32
CAPACITY_SECONDS = 0.5
SECONDS = 2.0


def run(folder: Path, say: Say) -> Report:
    """Measure both servers at half of what the slower one can do, and each at half of what itself can do."""
    say("making the model")
    models = repository.tiny(folder)
    request = infer("tiny", repository.row(1), binary=False)
    (threads,) = rivals.best_threads(models, [(request, CONNECTIONS)], say)
    with ExitStack() as opened, pinned(0):
        ports = {
            "ours": opened.enter_context(Server(models)).port,
            "gthread": opened.enter_context(rivals.gthread(models, threads)).port,
        }
        say("capacity")
        limits = {name: rounds.load_on(port, request, CONNECTIONS, CAPACITY_SECONDS) for name, port in ports.items()}
        rounds.run(list(limits.values()), say)
        capacity = {name: median(rounds.rates(series)) for name, series in limits.items()}
        half = min(capacity.values()) / 2

        def at(name: str, rate: float) -> Series[Load]:
            return rounds.load_on(ports[name], request, CONNECTIONS, SECONDS, rate=rate)

        same = {f"{name}{turn}": at(name, half) for turn in ("", " again") for name in ports}
        own = {name: at(name, limit / 2) for name, limit in capacity.items() if limit / 2 > half}
        rounds.run([*same.values(), *own.values()], say)
    return _report(threads, capacity, same, own)


def _report(
    threads: int, capacity: Mapping[str, float], same: Mapping[str, Series[Load]], own: Mapping[str, Series[Load]]
) -> Report:
    ours, again, gthread, theirs = (_p99(same[name]) for name in ("ours", "ours again", "gthread", "gthread again"))
    controls = rounds.ratios(again, ours), rounds.ratios(theirs, gthread)
    half = min(capacity.values()) / 2
    late = {name: median(load.late_ms for load in same[name].found) for name in ("ours", "gthread")}
    figures = [
        Figure(
            f"p99 at {half:,.0f} requests/s ÷ gthread, {threads} threads, no worse beyond the noise",
            median(rounds.ratios(ours, gthread)),
            "×",
            bound=1 + rounds.noise(*controls),
            control=median(controls[0]),
        ),
        Figure("the same, of gthread", 1.0, "×", control=median(controls[1])),
        Figure("p99, ours", median(ours), "ms", control=median(again)),
        Figure("p99, gthread", median(gthread), "ms", control=median(theirs)),
        Figure("sent late by the load generator to ours, p99", late["ours"], "ms"),
        Figure("sent late by the load generator to gthread, p99", late["gthread"], "ms"),
    ]
    for name, limit in capacity.items():
        # The slower one's half is the same rate that both had.
        p99 = _p99(own.get(name, same[name]))
        figures.append(Figure(f"p99 at half of its own capacity, {limit / 2:,.0f} requests/s, {name}", median(p99), "ms"))
    found = {name: series.found for name, series in same.items()}
    at_own = {f"{name} at half of its own capacity": series.found for name, series in own.items()}
    return Report(figures, "the server ÷ itself", {"capacity": capacity, **found, **at_own})


def _p99(series: Series[Load]) -> list[float]:
    return [load.p99_ms for load in series.found]
