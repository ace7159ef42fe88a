"""The limit: a model called in process, nothing around it: `python -m bench.direct <model.onnx> <seconds> <batch size> ...`.

Sizes run in turn; rows per second by size go to standard output as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.rounds import Series

WARM_SECONDS = 0.3


def start(model: Path, seconds: float, sizes: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start calling; `finish` waits for what was found."""
    command = [sys.executable, "-m", "bench.direct", str(model), str(seconds), *map(str, sizes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - this very file


def finish(process: subprocess.Popen[bytes]) -> Mapping[int, float]:
    """Rows per second by batch size; raises `ChildProcessError` if the model could not be called."""
    found = process.communicate()[0]
    if process.returncode:
        message = f"calling in process ended with {process.returncode}"
        raise ChildProcessError(message)
    return {int(size): rate for size, rate in json.loads(found).items()}


def series(model: Path, seconds: float, sizes: Sequence[int]) -> Series[Mapping[int, float]]:
    """A measure: rows per second by batch size, on the core that the caller is kept to."""
    return Series(lambda: finish(start(model, seconds, sizes)))


def call(model: Path, seconds: float, sizes: Sequence[int]) -> Mapping[int, float]:
    """Call the model at each size in turn, on one thread, for `seconds` in all; rows per second by size."""
    import onnxruntime  # noqa: PLC0415 - only the process that calls needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    row = np.random.Generator(np.random.PCG64(1)).random((1, *given.shape[1:]), np.float32)
    feeds = {size: {given.name: np.repeat(row, size, 0)} for size in sizes}
    spent = dict.fromkeys(sizes, 0.0)
    calls = dict.fromkeys(sizes, 0)
    warm = time.perf_counter() + WARM_SECONDS
    end = warm + seconds
    now = 0.0
    while now < end:
        for size, feed in feeds.items():
            before = time.perf_counter()
            session.run(None, feed)
            now = time.perf_counter()
            if before > warm:
                spent[size] += now - before
                calls[size] += 1
    return {size: size * calls[size] / spent[size] for size in sizes}


if __name__ == "__main__":
    path, period, *batches = sys.argv[1:]
    print(json.dumps(call(Path(path), float(period), [int(batch) for batch in batches])))
