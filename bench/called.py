"""The limit on a GPU: the engine called in process, nothing around it: `python -m bench.called <models> <seconds>`.

Every declared batch size in turn, with CUDA graphs and without; rows per second by size go to standard output as JSON, twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

RUNS = 3
"""Of each size, before times are taken."""

Rates = Mapping[int, float]


def rates(models: Path, seconds: float) -> tuple[Rates, Rates]:
    """Rows per second by batch size in a process of its own, with graphs and without."""
    command = [sys.executable, "-m", "bench.called", str(models), str(seconds)]
    environ = {**os.environ, "WARMFORK_WORKERS": "1", "WARMFORK_DEVICE": "cuda"}
    called = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)  # noqa: S603 - this very file
    graphs, none = ({int(size): rate for size, rate in found.items()} for found in json.loads(called.stdout))
    return graphs, none


def call(root: Path, seconds: float, *, graphs: bool) -> Rates:
    """Call the one model of a repository, as a worker does, at each batch size for `seconds` in all."""
    from server import environment  # noqa: F401, PLC0415 - only the process that calls needs any of this
    from server.engines.catalogue import engine_for  # noqa: PLC0415
    from server.engines.torch_session import TorchSession  # noqa: PLC0415
    from server.gpus import see  # noqa: PLC0415
    from server.models import operator, repository  # noqa: PLC0415
    from server.models.model import Model  # noqa: PLC0415
    from server.models.source import source  # noqa: PLC0415
    from server.settings import Settings  # noqa: PLC0415
    from server.warmup import samples  # noqa: PLC0415

    gpu = Settings.read(os.environ).with_gpus(os.environ).allotment(1)
    see(gpu.gpu)
    (files,) = repository.scan(root)
    python, engine = operator.load(files), engine_for(files.path)
    session = engine.load(source(files, python, gpu), 1)
    session.enter(1, gpu)
    if isinstance(session, TorchSession) and session.cuda:
        session.cuda.captures = graphs
    model = Model(files, python, session, engine.platform)
    given = {shape[0]: samples.own(model, shape) for shape in model.shapes()}
    for feed in given.values():
        for _ in range(RUNS):
            session.run(feed)
    spent, calls = dict.fromkeys(given, 0.0), dict.fromkeys(given, 0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for size, feed in given.items():
            before = time.perf_counter()
            session.run(feed)
            spent[size] += time.perf_counter() - before
            calls[size] += 1
    return {size: size * calls[size] / spent[size] for size in given}


if __name__ == "__main__":
    path, period = sys.argv[1:]
    print(json.dumps([call(Path(path), float(period) / 2, graphs=graphs) for graphs in (True, False)]))
