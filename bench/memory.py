"""One copy: the memory of eight workers against that of one, each having served, with half a gigabyte of weights."""

from __future__ import annotations

from pathlib import Path

from bench import repository, torch_repository
from bench.client import infer
from bench.held import Held, measure
from bench.report import Figure, Report, Say

BOUND = 1.15
MANY = 8
REQUESTS = 1000
"""Requests that each server answers before it is looked at, spread evenly over its workers."""
FLAT = 1.02
LATER = 10_000
"""Requests that it then answers before it is looked at again, twice, each `WHOLE`th of them through all of the model."""
WHOLE = 100
FEW = 2
"""Workers, where memory is not compared: with one alone, what is the file's and mapped would count as its own."""


def run(folder: Path, say: Say) -> Report:
    """Measure one worker and many, of each engine."""
    say("making the models")
    onnx, torch, tiny, both = (
        make(folder) for make in (repository.wide, torch_repository.wide, repository.tiny, torch_repository.both_tiny)
    )
    figures, details = _onnx(onnx, say)
    for found in (_torch(torch, say), _import(tiny, both, say)):
        figures += found[0]
        details |= found[1]
    return Report(
        figures,
        f"a session in each worker (WARMFORK_THREADS=2), {MANY} workers reckoned from 2",
        {"weights": repository.WEIGHTS, **details},
    )


Found = tuple[list[Figure], dict[str, Held]]


def _onnx(models: Path, say: Say) -> Found:
    """One worker and many; then, where a session cannot be shared (two threads), one and two."""
    request = infer("wide", repository.row(1, repository.WIDTH))
    (one,), (many,) = (measure(models, say, workers, 1, [request] * REQUESTS) for workers in (1, MANY))
    # The control needs fewer requests: its copies are there from the start.
    (alone,), (two,) = (measure(models, say, workers, 2, [request] * 20 * workers) for workers in (1, 2))
    control = 1 + (MANY - 1) * (two.pss - alone.pss) / alone.pss
    figures = [
        Figure(f"memory of the whole server, {MANY} workers ÷ 1", many.pss / one.pss, "", BOUND, control),
        Figure(
            "a worker's private memory ÷ weights", many.worker / repository.WEIGHTS, "", None, two.worker / repository.WEIGHTS
        ),
        Figure("memory of the whole server, 1 worker", one.pss / 1e6, "MB", None, alone.pss / 1e6),
        Figure(f"memory of the whole server, {MANY} workers", many.pss / 1e6, "MB"),
    ]
    return figures, {"one": one, "many": many, "control one": alone, "control two": two}


def _torch(models: Path, say: Say) -> Found:
    """One worker and many; then the many again, once each has had many requests, and once more."""
    rows = repository.row(1, repository.WIDTH)
    whole, short = infer("wide", rows), infer("wide", {"x": rows["x"] + 1})
    more = [short if number % WHOLE else whole for number in range(LATER)]
    (one,) = measure(models, say, 1, 1, [whole] * REQUESTS)
    many, later, last = measure(models, say, MANY, 1, [whole] * REQUESTS, more, more)
    figures = [
        Figure(f"torch: memory of the whole server, {MANY} workers ÷ 1", many.pss / one.pss, "", BOUND),
        Figure(f"torch: the same, {LATER:,} requests later ÷ before", later.pss / many.pss, "", FLAT),
        Figure(f"torch: the same, another {LATER:,} requests later ÷ before", last.pss / later.pss, "", FLAT),
        Figure("torch: a worker's private memory ÷ weights", many.worker / repository.WEIGHTS),
        Figure("torch: a worker's private memory", many.worker / 1e6, "MB"),
        Figure("torch: memory of the whole server, 1 worker", one.pss / 1e6, "MB"),
        Figure(f"torch: memory of the whole server, {MANY} workers", many.pss / 1e6, "MB"),
    ]
    return figures, {"torch one": one, "torch many": many, "torch later": later, "torch last": last}


def _import(tiny: Path, both: Path, say: Say) -> Found:
    """What importing torch costs: workers with a tiny model of ONNX, without and with one of torch beside it."""
    row = repository.row(1)
    requests = [infer("tiny", row), infer("tiny_torch", row)] * 100
    (without,) = measure(tiny, say, FEW, 1, requests[::2])
    (beside,) = measure(both, say, FEW, 1, requests)
    figures = [
        Figure(
            "a tiny model of torch beside one of ONNX: a worker's private memory",
            beside.worker / 1e6,
            "MB",
            None,
            without.worker / 1e6,
        ),
        Figure("a tiny model of torch beside one of ONNX: the whole server", beside.pss / 1e6, "MB", None, without.pss / 1e6),
        Figure("what importing torch costs a worker", (beside.worker - without.worker) / 1e6, "MB"),
    ]
    return figures, {"tiny onnx": without, "tiny onnx and torch": beside}
