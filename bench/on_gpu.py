"""A GPU: `resnet50` in half precision over HTTP beside calls in process; what is cold, what graphs bring, and more workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import msgspec

from bench import load, repository, torch_repository
from bench.client import infer
from bench.first import DRIVER_SECONDS, Case, Starts, both
from bench.report import Figure, Report, Say
from bench.rounds import Series, noise, ratios
from bench.rounds import run as in_turn
from tests.server import Server

COLD = 1.25
SATURATED = 0.85
SIZES = (1, 8, 32)
ROWS = 8
"""Images in a request."""
CONNECTIONS = 16
GENERATORS = 4
SECONDS = 3.0
WORKERS = (1, 2, 4)
NAME = "resnet50_torch"

Rates = Mapping[int, float]


def run(folder: Path, say: Say) -> Report:
    """Measure on the first GPU. Raises `ResourceError` where there is none."""
    say("making the model")
    models = _models(folder)
    shapes = {str(size): infer(NAME, repository.pixels(size)) for size in SIZES}
    warm, cold = map(_slowest, both(Case("resnet50, fp16", models, shapes, workers=2, device="cuda:0"), say))
    figures = [
        Figure("first ÷ steady, the slowest shape and worker", warm, "", COLD, cold),
    ]
    process = Series(partial(_called, models))
    served = {workers: Series(partial(_saturated, models, workers)) for workers in WORKERS}
    again = Series(partial(_saturated, models, WORKERS[0]))
    in_turn([process, *served.values(), again], say)
    limits = [_limit(found.sizes, graphs) for found, (graphs, _) in zip(served[WORKERS[0]].found, process.found, strict=True)]
    rates = {workers: [found.rate for found in series.found] for workers, series in served.items()}
    one = rates[WORKERS[0]]
    control = ratios([found.rate for found in again.found], one)
    figures += [
        Figure("HTTP ÷ in process, the same batch sizes", median(ratios(one, limits)), "×", None, median(control), SATURATED),
        Figure("the same twice: noise", noise(control)),
        *(
            Figure(
                f"graphs ÷ none, in process, batch {size}",
                median(graphs[size] / none[size] for graphs, none in process.found),
                "×",
            )
            for size in SIZES
        ),
        *(
            Figure(f"images in process, batch {size}", median(graphs[size] for graphs, _ in process.found), "/s")
            for size in SIZES
        ),
    ]
    for workers, series in served.items():
        figures += [
            Figure(f"images over HTTP, workers: {workers}", median(rates[workers]), "/s"),
            Figure(f"memory of the GPU, each of {workers}", median(found.gpu_bytes for found in series.found) / 1e6, "MB"),
            Figure(f"private memory, each of {workers}", median(found.private_bytes for found in series.found) / 1e6, "MB"),
        ]
    details = {"in process": process.found, **{f"{workers} workers": series.found for workers, series in served.items()}}
    return Report(figures, "without warmup; the server ÷ itself", details)


class Saturated(msgspec.Struct, frozen=True):
    """A server that has as much to do as it can."""

    rate: float
    """Images a second."""
    sizes: Mapping[int, int]
    """Rows by the size of the batch that they ran in."""
    gpu_bytes: int
    private_bytes: int


def _slowest(starts: Starts) -> float:
    """The most that any shape of any worker takes at first, in steady ones: of each the median over all starts."""
    found: dict[tuple[int, str], list[float]] = {}
    for each in chain.from_iterable(starts):
        found.setdefault((each.worker, each.shape), []).append(each.ratio)
    return max(map(median, found.values()))


def _models(folder: Path) -> Path:
    """`resnet50` as a module in half precision, that takes pixels."""
    models = torch_repository.resnet50(folder / "gpu", "module")
    toml, python = models / NAME / "model.toml", models / NAME / "1" / "model.py"
    text = toml.read_text(encoding="utf-8")
    if "fp16" not in text:
        text = re.sub(r"^batch_sizes = .*$", f"batch_sizes = {list(SIZES)}", text, flags=re.MULTILINE)
        text = re.sub(r"^golden = .*\n", "rtol = 0.05\natol = 0.05\n", text, flags=re.MULTILINE)
        text = text.replace('datatype = "FP32"', 'datatype = "UINT8"', 1)
        toml.write_text(f'{text}\n[torch]\nprecision = "fp16"\n', encoding="utf-8")
        network = python.read_text(encoding="utf-8")
        python.write_text(
            network.replace("for part in self:", "image = image.to(self[0].weight.dtype) / 255\n        for part in self:"),
            encoding="utf-8",
        )
    return models


def _called(models: Path) -> tuple[Rates, Rates]:
    """Images a second in process by batch size, with graphs and without."""
    command = [sys.executable, "-m", "bench.called", str(models), str(SECONDS)]
    environ = {**os.environ, "WARMFORK_WORKERS": "1", "WARMFORK_DEVICE": "cuda"}
    called = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)  # noqa: S603 - a program beside this one
    graphs, none = ({int(size): rate for size, rate in found.items()} for found in json.loads(called.stdout))
    return graphs, none


def _saturated(models: Path, workers: int) -> Saturated:
    request = infer(NAME, repository.pixels(ROWS))
    with Server(models, ready=False, workers=workers, device="cuda:0") as server:
        server.wait_ready(DRIVER_SECONDS)
        loads = [load.start(server.port, request, CONNECTIONS, SECONDS) for _ in range(GENERATORS)]
        rate = ROWS * sum(load.finish(each).rate for each in loads)
        page = server.status()["workers"]
        _, _, stats = server.request("GET", f"/v2/models/{NAME}/stats")
    memory = [worker["memory"]["private_bytes"] for worker in page]
    return Saturated(rate, _rows(stats), int(median(worker["gpu_bytes"] for worker in page)), int(median(memory)))


def _rows(stats: bytes) -> Mapping[int, int]:
    """How many images ran in batches of each size, of the statistics of all workers."""
    (model,) = msgspec.json.decode(stats)["model_stats"]
    return {each["batch_size"]: each["batch_size"] * each["compute_infer"]["count"] for each in model["batch_stats"]}


def _limit(rows: Mapping[int, int], rates: Mapping[int, float]) -> float:
    """Images a second in process, if as many ran at each batch size as did over HTTP."""
    return sum(rows.values()) / sum(count / rates[_held(size)] for size, count in rows.items())


def _held(size: int) -> int:
    return next(declared for declared in SIZES if declared >= size)
