"""Requests that cannot be served at once, or in time: 503, 504, and what becomes of an engine that never gives an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models import identity, put
from tests.phases import PLAIN
from tests.server import Server

HELD = {"x": ("FP32", [[13.0, 2.0, 3.0]])}
"""Inputs with which the engine waits until the gate opens."""
HANGS = {"x": ("FP32", [[14.0, 2.0, 3.0]])}
"""Inputs with which the engine never comes back from native code."""

_PYTHON = """
import ctypes, time
from pathlib import Path
import onnxruntime

GATE = Path({gate!r})
engine_run = onnxruntime.InferenceSession.run

def run(self, names, feed, options=None):
    if feed["x"][0, 0] in (13, 14):
        with GATE.with_suffix(".came").open("a") as came:
            came.write("one\\n")
    while feed["x"][0, 0] == 13 and GATE.exists():
        time.sleep(0.005)
    while feed["x"][0, 0] == 14:
        ctypes.CDLL(None).pause()
    return engine_run(self, names, feed, options)

onnxruntime.InferenceSession.run = run

def preprocess(inputs):
    return inputs
"""

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Engine:
    """A server of one worker whose engine is held at a gate."""

    server: Server
    gate: Path
    pool: ThreadPoolExecutor
    held: list[Future[Answer]] = field(default_factory=list)

    def ask(self, inputs: dict[str, tuple[str, list[list[float]]]]) -> Answer:
        """One inference: status, headers, body."""
        tensors = [{"name": "x", "datatype": kind, "shape": [1, 3], "data": data} for kind, data in inputs.values()]
        return self.server.request("POST", "/v2/models/m/infer", json.dumps({"inputs": tensors}).encode())

    def hold(self, inputs: dict[str, tuple[str, list[list[float]]]]) -> Future[Answer]:
        """One inference that is in the engine now and stays there."""
        asked = self.pool.submit(self.ask, inputs)
        self.server.wait(self.gate.with_suffix(".came").exists, "a request in the engine")
        return asked


@contextmanager
def _engine(root: Path, **settings: Any) -> Iterator[Engine]:
    gate = root / ".gate"
    gate.touch()
    put(root, "m", identity(), python=_PYTHON.format(gate=str(gate)))
    with ThreadPoolExecutor(8) as pool, Server(root, workers=1, **settings) as server:
        try:
            yield Engine(server, gate, pool)
        finally:
            gate.unlink(missing_ok=True)


def test_full_queue(tmp_path: Path) -> None:
    """With room for one to wait, the third at once gets 503 with Retry-After; who was let in is answered."""
    with _engine(tmp_path, max_queue=1) as engine:
        held = engine.hold(HELD)
        others = [engine.pool.submit(engine.ask, PLAIN) for _ in range(2)]
        engine.server.wait(lambda: any(other.done() for other in others), "one that is refused")
        (refused,) = [other for other in others if other.done()]
        status, headers, body = refused.result()
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert "WARMFORK_MAX_QUEUE" in json.loads(body)["error"]

        engine.gate.unlink()
        assert [each.result()[0] for each in (held, *others) if each is not refused] == [200, 200]


def test_no_queue(tmp_path: Path) -> None:
    """WARMFORK_MAX_QUEUE=0: whoever would have to wait is refused."""
    with _engine(tmp_path, max_queue=0) as engine:
        held = engine.hold(HELD)
        assert engine.ask(PLAIN)[0] == 503
        engine.gate.unlink()
        assert held.result()[0] == 200
        engine.server.wait(lambda: engine.ask(PLAIN)[0] == 200, "a free engine")


def test_slow_inference(tmp_path: Path) -> None:
    """Who waits for longer than WARMFORK_REQUEST_TIMEOUT gets 504, and so does a slow inference itself: its worker serves on."""
    with _engine(tmp_path, request_timeout=1) as engine:
        workers = engine.server.wait_state("active")
        began = time.monotonic()
        held = engine.hold(HELD)
        others = [engine.pool.submit(engine.ask, PLAIN) for _ in range(3)]
        assert [other.result()[0] for other in others] == [504] * 3
        assert "WARMFORK_REQUEST_TIMEOUT" in json.loads(others[0].result()[2])["error"]
        engine.server.wait(lambda: time.monotonic() > began + 2, "the inference to be late")
        engine.gate.unlink()

        assert held.result()[0] == 504
        assert engine.ask(PLAIN)[0] == 200
        assert [worker["pid"] for worker in engine.server.wait_state("active")] == [worker["pid"] for worker in workers]
        assert engine.server.probe("/readyz")[0] == 200


def test_hung_inference(tmp_path: Path) -> None:
    """Those who wait for an inference that never ends get 504 in time, its worker shows its stacks and is replaced."""
    with _engine(tmp_path, request_timeout=1) as engine:
        server = engine.server
        server.expect("an inference hangs", "ended with status 70", r"Worker \(pid:\d+\) exited with code 70")
        (old,) = server.wait_state("active")
        held = engine.hold(HANGS)
        began = time.monotonic()
        assert engine.ask(PLAIN)[0] == 504
        assert time.monotonic() - began < 4
        server.wait(lambda: old["pid"] not in server.processes(), "the end of the worker")
        server.wait_log("most recent call first")
        server.wait_ready()

        (new,) = server.wait_state("active")
        assert new["pid"] != old["pid"]
        assert engine.ask(PLAIN)[0] == 200
        assert isinstance(held.exception(), OSError) or held.result()[0] == 504
