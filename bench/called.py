"""The limit on a GPU: the engine called in process, nothing around it: `python -m bench.called <models> <seconds>`.

Every declared batch size in turn, with CUDA graphs and without; rows per second by size go to standard output as JSON, twice.
"""

from __future__ import annotations  # noqa: I001 - the next one comes before all others

from server import environment  # it tells the libraries below us to start no threads  # noqa: F401

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from server.engines.catalogue import engine_for
from server.engines.torch_session import TorchSession
from server.gpus import see
from server.models import operator, repository
from server.models.model import Model
from server.models.source import source
from server.settings import Settings
from server.warmup import samples

RUNS = 3
"""Of each size, before times are taken."""


def call(root: Path, seconds: float, *, graphs: bool) -> Mapping[int, float]:
    """Call the one model of a repository, as a worker does, at each batch size for `seconds` in all; rows per second by size."""
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
