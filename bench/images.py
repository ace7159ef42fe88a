"""Images per second of `resnet50`, where the model is what costs: beside the session called in process, on the same core."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import direct, repository, rounds
from bench.client import infer
from bench.machine import pinned
from bench.report import Figure, Report, Say
from tests.server import Server

CONNECTIONS = 8
SECONDS = 1.5
LEAST = {"binary": 0.95, "JSON": 0.88}


def run(folder: Path, say: Say) -> Report:
    """Measure both encodings, and the session at each batch size that the model declares."""
    say("making the model")
    models = repository.resnet50(folder)
    model = models / "resnet50" / "1" / "model.onnx"
    requests = {encoding: infer("resnet50", repository.image(1), binary=encoding == "binary") for encoding in LEAST}
    with ExitStack() as opened, pinned(0):
        port = opened.enter_context(Server(models)).port
        called = direct.series(model, SECONDS, repository.SIZES)
        at = {
            (encoding, turn): rounds.load_on(port, request, CONNECTIONS, SECONDS)
            for turn in ("first", "again")
            for encoding, request in requests.items()
        }
        first, again = ([at[encoding, turn] for encoding in LEAST] for turn in ("first", "again"))
        rounds.run([*first, called, *again], say)
    best = rounds.best(called)
    figures = []
    for encoding, least in LEAST.items():
        ours, control = (rounds.rates(at[encoding, turn]) for turn in ("first", "again"))
        beside, itself = (median(rounds.ratios(*pair)) for pair in ((ours, best), (control, ours)))
        figures.append(Figure(f"{encoding} tensors ÷ calls in process", beside, "×", control=itself, least=least))
    for encoding, request in requests.items():
        spent = 1e3 / median(rounds.rates(at[encoding, "first"]))
        figures.append(Figure(f"{encoding} tensors: an image, sent as {len(request) / 1e6:.2g} MB", spent, "ms"))
    figures.append(Figure("called in process: an image", 1e3 / median(best), "ms"))
    found = {f"{encoding}, {turn}": series.found for (encoding, turn), series in at.items()}
    return Report(figures, "the server ÷ itself", {**found, "in process": called.found})
