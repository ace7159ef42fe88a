"""Requests that cannot be served at once, or in time: 503, 504, and what becomes of an engine that never gives an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.clients import connected, head
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
Inputs = dict[str, tuple[str, list[list[float]]]]


def _body(inputs: Inputs) -> bytes:
    tensors = [{"name": "x", "datatype": kind, "shape": [1, 3], "data": data} for kind, data in inputs.values()]
    return json.dumps({"inputs": tensors}).encode()


@dataclass
class Engine:
    """A server of one worker whose engine is held at a gate."""

    server: Server
    gate: Path
    pool: ThreadPoolExecutor
    held: list[Future[Answer]] = field(default_factory=list)

    def ask(self, inputs: Inputs) -> Answer:
        """One inference: status, headers, body."""
        return self.server.request("POST", "/v2/models/m/infer", _body(inputs))

    def hold(self, inputs: Inputs) -> Future[Answer]:
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


@pytest.mark.parametrize("room", [0, 1])
def test_full_queue(room: int, tmp_path: Path) -> None:
    """With room for one to wait (or none), the second at once gets 503 with Retry-After; who was let in is answered."""
    body = _body(PLAIN)
    with _engine(tmp_path, max_queue=room) as engine, connected(engine.server, 2) as others:
        held = engine.hold(HELD)
        for other in others:
            other.send(head("m", len(body)) + body)  # where the worker finds both when it reads on
        engine.gate.unlink()
        assert held.result()[0] == 200

        answered, refused = sorted((other.read() for other in others), key=lambda answer: answer.status)
        assert (200, 503) == (answered.status, refused.status)
        assert int(refused.header("Retry-After") or 0) >= 1
        assert "WARMFORK_MAX_QUEUE" in refused.error


def test_hung_inference(tmp_path: Path) -> None:
    """Who waits for an inference that never ends gets 504; its worker shows its stacks and is replaced."""
    with _engine(tmp_path, request_timeout=1) as engine:
        server = engine.server
        server.expect("an inference hangs", "ended with status 70", r"Worker \(pid:\d+\) exited with code 70")
        (old,) = server.wait_state("active")
        held = engine.hold(HANGS)
        assert engine.ask(PLAIN)[0] == 200  # by the worker's successor, which accepts it
        assert held.result()[0] == 504
        assert "WARMFORK_REQUEST_TIMEOUT" in json.loads(held.result()[2])["error"]
        server.wait_log("most recent call first")

        (new,) = server.wait_state("active")
        assert new["pid"] != old["pid"]
