"""What batching brings: a model that reads its weights once per batch, beside the same one row at a time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import direct, repository, rivals, rounds
from bench.client import infer
from bench.machine import pinned
from bench.report import Figure, Report, Say
from tests.server import Server

CONNECTIONS = 32
SECONDS = 1.2
LEAST = 3.5
THREADED = "-k gthread --threads 32"


def run(folder: Path, say: Say) -> Report:
    """Measure the server beside itself without batches, and beside an app that batches in a thread."""
    say("making the model")
    batched, single = repository.products(folder, *repository.BATCHES), repository.products(folder, 1)
    model = batched / "products" / "1" / "model.onnx"
    request = infer("products", repository.row(1, repository.WIDTH))
    with ExitStack() as opened, pinned(0):
        ports = {
            "ours": opened.enter_context(Server(batched)).port,
            "unbatched": opened.enter_context(Server(single)).port,
            "thread": opened.enter_context(rivals.serve("batching_app", model, THREADED, request)).port,
        }
        ports["again"] = ports["ours"]
        at = {name: rounds.load_on(port, request, CONNECTIONS, SECONDS) for name, port in ports.items()}
        called = direct.series(model, SECONDS, repository.BATCHES)
        rounds.run([*at.values(), called], say)
    ours, again, unbatched, thread = (rounds.rates(at[name]) for name in ("ours", "again", "unbatched", "thread"))
    control = rounds.ratios(again, ours)
    best = rounds.best(called)
    figures = [
        Figure("÷ unbatched", median(rounds.ratios(ours, unbatched)), "×", control=median(control), least=LEAST),
        Figure(
            "÷ gthread with a batching thread, no worse beyond the noise",
            median(rounds.ratios(ours, thread)),
            "×",
            control=median(control),
            least=1 - rounds.noise(control),
        ),
        Figure("÷ calls in process, the best batch", median(rounds.ratios(ours, best)), "×", control=median(control)),
        Figure("requests", median(ours), "/s"),
        Figure("unbatched: requests", median(unbatched), "/s"),
        Figure("gthread with a batching thread: requests", median(thread), "/s"),
        Figure("called in process: rows", median(best), "/s"),
    ]
    return Report(
        figures, "the server ÷ itself", {**{name: series.found for name, series in at.items()}, "in process": called.found}
    )
