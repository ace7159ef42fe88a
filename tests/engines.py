"""An engine that does as it is told: it waits at a gate, hangs, raises or takes its time, and writes down what it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from tests.clients import Client, infer
from tests.models import BATCHED, identity, put
from tests.server import Server

WAITS, WAITS_TOO, HANGS, HOLDS, RAISES, SLOW = 12.0, 13.0, 14.0, 15.0, 16.0, 17.0
"""First values of a row: the run waits at the gate of that number; never comes back; never comes back and holds the interpreter's
lock; raises; takes `slow` seconds."""

_PYTHON = """
import ctypes, time
from pathlib import PosixPath
import onnxruntime

LOG, GATES = {log!r}, {gates!r}
engine_run = onnxruntime.InferenceSession.run

def write(what, values):
    with LOG.open("a") as log:
        log.write(" ".join([what, *map(repr, values)]) + "\\n")

def run(self, names, feed, options=None):
    values = feed["x"][:, 0].tolist()
    if max(values) > 1:  # else it is what makes the model warm
        write("run", values)
        while any(value in values and gate.exists() for value, gate in GATES.items()):
            time.sleep(0.005)
        while {hangs} in values:
            ctypes.CDLL(None).pause()
        while {holds} in values:  # no signal ends the wait for a mutex that the same thread has locked
            mutex = ctypes.create_string_buffer(64)
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)
        if {raises} in values:
            raise RuntimeError("no luck")
        time.sleep({slow} if {slow_value} in values else {seconds})
    return engine_run(self, names, feed, options)

if not hasattr(engine_run, "watched"):
    run.watched = True
    onnxruntime.InferenceSession.run = run

def preprocess(inputs):
    values = inputs["x"][:, 0].tolist()
    if max(values) > 1:
        write("request", values)
    return inputs
"""


ONE_OR_EIGHT = "batch_sizes = [1, 8]\n"
"""For tests that count batches. Between sizes closer to one another a worker chooses by what each took when it was warmed."""


class Engine:
    """onnxruntime in the servers of one repository, whose run the Python beside the models replaces.

    What values a row begins with decides; all values of a test's own are over 1, those that warm a model up are not.
    """

    def __init__(self, root: Path, *, seconds: float = 0.0, slow: float = 0.0) -> None:
        """Write models into `root`; each of their runs takes `seconds` at least, one with a `SLOW` row takes `slow`."""
        self.root = root
        self.gates = {value: root / f".gate-{value:g}" for value in (WAITS, WAITS_TOO)}
        self.log = root / ".log"
        self.log.touch()
        values = {"hangs": HANGS, "raises": RAISES, "holds": HOLDS, "slow_value": SLOW}
        self.python = _PYTHON.format(log=self.log, gates=self.gates, seconds=seconds, slow=slow, **values)

    def put(self, name: str = "m", model: onnx.ModelProto | None = None, toml: str = BATCHED) -> None:
        """Write a model: by default `y` is `x`, FP64 [batch, 1]."""
        put(self.root, name, model or identity("FP64", 1), toml, self.python)

    def close(self, gate: float = WAITS) -> None:
        """From now on a run with such a row waits."""
        self.gates[gate].touch()

    def open(self, gate: float = WAITS) -> None:
        """Let it go on."""
        self.gates[gate].unlink(missing_ok=True)

    def lines(self) -> list[tuple[str, list[float]]]:
        """All that happened so far, in order: `request` or `run`, and what the rows begin with; padding is 0."""
        parts = (line.split() for line in self.log.read_text(encoding="utf-8").splitlines())
        return [(what, [float(value) for value in values]) for what, *values in parts]

    def runs(self) -> list[list[float]]:
        """What each run's rows began with, padding included."""
        return [values for what, values in self.lines() if what == "run"]

    def hold(self, server: Server, client: Client, request: bytes = b"") -> None:
        """Close the gate and send a request of `client` that is in the engine now, held there."""
        self.close()
        before = len(self.runs())
        client.send(request or infer(WAITS))
        server.wait(lambda: len(self.runs()) > before, "a request in the engine")

    def ran(self, value: float) -> bool:
        """Whether a row that begins with `value` has come to a run."""
        return any(value in values for values in self.runs())


def sizes(runs: Sequence[Sequence[float]]) -> list[int]:
    """How many rows each run had, padding included."""
    return [len(values) for values in runs]
