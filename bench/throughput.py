"""Requests per second of a tiny model, where the server is what costs: beside `gthread`, a bare ASGI app, and the limits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench import direct, repository, rivals, rounds
from bench.client import infer
from bench.load import Load
from bench.machine import pinned
from bench.report import Figure, Report, Say
from bench.rounds import Series
from tests.server import Server

SECONDS = 0.6
PLAIN = "-k gthread --threads 16"
ASGI = "-k asgi --asgi-loop uvloop --asgi-lifespan off"
ANSWER = "0" * 250
"""Of nginx: as long as ours."""


@dataclass(frozen=True, slots=True)
class Point:
    """One way to ask, and what must come of it."""

    name: str
    binary: bool
    connections: int
    least: Mapping[str, float | None]
    """By rival: how many times its rate ours must be."""

    @property
    def request(self) -> bytes:
        """What is sent."""
        return infer("tiny", repository.row(1), binary=self.binary)


POINTS = (
    Point("JSON, 32 connections", binary=False, connections=32, least={"gthread": 3.0, "plain": None}),
    Point("binary, 32 connections", binary=True, connections=32, least={"gthread": 3.0, "asgi": 1.0, "plain": None}),
    Point("JSON, 1 connection", binary=False, connections=1, least={"gthread": 1.2, "plain": None}),
)


def run(folder: Path, say: Say) -> Report:
    """Measure each point on all servers in turn, the servers on one core and the clients on another."""
    say("making the model")
    models = repository.tiny(folder)
    model = models / "tiny" / "1" / "model.onnx"
    threads = rivals.best_threads(models, [(point.request, point.connections) for point in POINTS], say)
    with ExitStack() as opened, pinned(0):
        ours = opened.enter_context(Server(models)).port
        gthread = {count: opened.enter_context(rivals.gthread(models, count)).port for count in sorted(set(threads))}
        plain = opened.enter_context(rivals.serve("plain_app", model, PLAIN, POINTS[0].request)).port
        asgi = opened.enter_context(rivals.serve("asgi_app", model, ASGI, POINTS[1].request)).port
        nginx = opened.enter_context(rivals.nginx(folder, ANSWER))
        called = direct.series(model, SECONDS, repository.BATCHES)
        measured: list[dict[str, Series[Load]]] = []
        for point, count in zip(POINTS, threads, strict=True):
            on = {"gthread": gthread[count], "plain": plain, "asgi": asgi}
            ports = {"ours": ours, **{rival: on[rival] for rival in point.least}, "nginx": nginx, "again": ours}
            load_on = partial(rounds.load_on, request=point.request, connections=point.connections, seconds=SECONDS)
            measured.append({name: load_on(port) for name, port in ports.items() if port})
        rounds.run([called, *(series for at in measured for series in at.values())], say)
    names = {"plain": "a plain gthread and falcon app", "asgi": "a bare ASGI app with uvloop"}
    figures = []
    for point, count, at in zip(POINTS, threads, measured, strict=True):
        names["gthread"] = f"gthread, {count} threads"
        figures += [_beside(f"{point.name} ÷ {names[rival]}", at, rival, least) for rival, least in point.least.items()]
    for point, at in zip(POINTS, measured, strict=True):
        figures += _limits(point, at, called)
    found = {
        f"{point.name}, {name}": series.found for point, at in zip(POINTS, measured, strict=True) for name, series in at.items()
    }
    details = {
        "threads of gthread": dict(zip((point.name for point in POINTS), threads, strict=True)),
        "in process": called.found,
    }
    if nginx is None:
        details["nginx"] = "is not installed, so it was not measured"
    return Report(figures, "the server ÷ itself", {**details, **found})


def _beside(name: str, at: Mapping[str, Series[Load]], rival: str, least: float | None) -> Figure:
    ours, again, other = (rounds.rates(at[each]) for each in ("ours", "again", rival))
    ratio, control = (median(rounds.ratios(*pair)) for pair in ((ours, other), (again, ours)))
    return Figure(name, ratio, "×", control=control, least=least)


def _limits(point: Point, at: Mapping[str, Series[Load]], called: Series[Mapping[int, float]]) -> list[Figure]:
    """What one request takes, and of that nginx, which says the same to all, and the call of the largest possible batch."""
    size = max(size for size in repository.BATCHES if size <= point.connections)
    spent = {name: 1e6 / median(rounds.rates(series)) for name, series in at.items()}
    figures = [
        Figure(f"{point.name}: a request", spent["ours"], "µs", control=spent["again"]),
        Figure(f"{point.name}: p99", median(each.p99_ms for each in at["ours"].found), "ms"),
    ]
    if "nginx" in at:
        figures.append(Figure(f"{point.name}: a request to nginx", spent["nginx"], "µs"))
    figures.append(Figure(f"{point.name}: its row, called in process", 1e6 / median(each[size] for each in called.found), "µs"))
    return figures
