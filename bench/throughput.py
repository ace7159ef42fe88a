"""Requests per second and latency of a tiny model, beside a plain gthread and falcon app: what our own code costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import load, repository
from bench.client import infer
from bench.load import Load
from bench.machine import pinned
from bench.report import Figure, Report, Say
from tests.server import ROOT, Server

ENCODINGS = ("JSON", "binary")
CONNECTIONS = (1, 32)
ROUNDS = 5
SECONDS = 1.5
PLAIN = "-k gthread -w 1 --threads 16 --keep-alive 75 -b 127.0.0.1:0 --no-control-socket plain_app:app"


def run(folder: Path, say: Say) -> Report:
    """Measure each point on both servers in turn, the servers on one core and the clients on another."""
    say("making the model")
    models = repository.tiny(folder)
    requests = {encoding: infer("tiny", repository.row(1), binary=encoding == "binary") for encoding in ENCODINGS}
    points = [(encoding, connections) for encoding in ENCODINGS for connections in CONNECTIONS]
    found: dict[tuple[str, int, str], list[Load]] = {}
    with pinned(0):
        ours, plain = Server(models), _plain(models)
        with ours as server, plain as plain_port, pinned(1):
            for turn in range(ROUNDS):
                say(f"round {turn + 1} of {ROUNDS}")
                for encoding, connections in points:
                    for name, port in (("warmfork", server.port), ("plain", plain_port)):
                        loaded = load.finish(load.start(port, requests[encoding], connections, SECONDS))
                        found.setdefault((encoding, connections, name), []).append(loaded)
    figures = []
    for encoding, connections in points:
        for what, unit, read in (
            ("requests", "/s", lambda each: each.rate),
            ("p50", "ms", lambda each: each.p50_ms),
            ("p99", "ms", lambda each: each.p99_ms),
        ):
            value, control = (median(map(read, found[encoding, connections, name])) for name in ("warmfork", "plain"))
            figures.append(Figure(f"{encoding}, {connections} connections, {what}", value, unit, None, control))
    details = {f"{name}, {encoding}, {connections}": loads for (encoding, connections, name), loads in found.items()}
    return Report(figures, "a plain gthread and falcon app", details)


@contextmanager
def _plain(models: Path) -> Iterator[int]:
    """Serve `bench/plain_app.py`; give its port."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "gunicorn", *PLAIN.split()],
        cwd=ROOT / "bench",  # in the root gunicorn would find our own configuration
        env={**os.environ, "PLAIN_MODEL": str(models / "tiny" / "1" / "model.onnx"), "ORT_DISABLE_TELEMETRY": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield next(int(match[1]) for line in process.stderr or () if (match := re.search(r"Listening at: .*:(\d+) ", line)))
        finally:
            process.terminate()
