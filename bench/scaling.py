"""Two workers on two cores beside one on one, with a model that is nearly all that costs; the same of calls in process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import direct, repository, rounds
from bench.client import infer
from bench.machine import CORES, pinned
from bench.report import Figure, Report, Say
from bench.rounds import Series
from tests.server import Server

CONNECTIONS = 12
SECONDS = 1.5
LEAST = 1.8
ONE, BOTH = (0,), (0, 1)
"""Cores."""


def run(folder: Path, say: Say) -> Report:
    """Measure both servers with a load generator that may run on both cores, since with two workers there is no third for it."""
    if len(CORES) < len(BOTH):
        message = f"two workers are to run on two cores, here is {len(CORES)}"
        raise OSError(message)
    say("making the model")
    models = repository.resnet50(folder)
    model = models / "resnet50" / "1" / "model.onnx"
    request = infer("resnet50", repository.image(1))
    with ExitStack() as opened:
        ports = {}
        for name, cores in (("one", ONE), ("two", BOTH)):
            with pinned(*cores):
                ports[name] = opened.enter_context(Server(models, workers=len(cores))).port
        ports["again"] = ports["two"]
        at = {name: rounds.load_on(port, request, CONNECTIONS, SECONDS, cores=BOTH) for name, port in ports.items()}
        called = {"one": _called(model, ONE), "two": _called(model, BOTH)}
        rounds.run([*at.values(), *called.values()], say)
    one, two, again = (rounds.rates(at[name]) for name in ports)
    figures = [
        Figure(
            "2 workers on 2 cores ÷ 1 on 1",
            median(rounds.ratios(two, one)),
            "×",
            control=median(rounds.ratios(again, two)),
            least=LEAST,
        ),
        Figure("calls in process, 2 processes ÷ 1", median(rounds.ratios(called["two"].found, called["one"].found)), "×"),
        Figure("images, 1 worker", median(one), "/s"),
        Figure("images, 2 workers", median(two), "/s"),
        Figure("images in process, 1 process", median(called["one"].found), "/s"),
        Figure("images in process, 2 processes", median(called["two"].found), "/s"),
        Figure("the load generator's share of a core, 2 workers", median(each.busy for each in at["two"].found)),
    ]
    in_process = {f"in process, {name}": series.found for name, series in called.items()}
    return Report(figures, "the server ÷ itself", {**{name: series.found for name, series in at.items()}, **in_process})


def _called(model: Path, cores: Sequence[int]) -> Series[float]:
    """Images per second of one process on each of `cores`, all at the same time, at the largest batch size."""

    def measure() -> float:
        processes = []
        for core in cores:
            with pinned(core):
                processes.append(direct.start(model, SECONDS, repository.SIZES[-1:]))
        return sum(rate for process in processes for rate in direct.finish(process).values())

    return Series(measure)
