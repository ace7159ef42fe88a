"""The synthetic load: what is sent, and what refuses a worker."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from server.exits import ModelError
from server.scoreboard import NEVER
from server.tensors import DTYPES, Array, Tensors
from server.warmup import own_request, polite, rehearsal, run_through, samples
from server.warmup.polite import FULL_SPEED, Polite
from tests.unit.fakes import model, rows, save

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def parsed(content: bytes) -> tuple[str, dict[str, str], dict[str, Any], bytes]:
    """The request line, the header, the JSON and the binary tail of a request."""
    head, _, body = content.partition(b"\r\n\r\n")
    line, *fields = head.decode("ascii").split("\r\n")
    header = dict(field.split(": ", 1) for field in fields)
    assert len(body) == int(header["Content-Length"])
    length = int(header.get("Inference-Header-Content-Length", len(body)))
    return line, header, msgspec.json.decode(body[:length]), body[length:]


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_request(datatype: str, binary: bool) -> None:  # noqa: FBT001
    """A request is well-formed HTTP with what the protocol asks for, and carries exactly the sample's values."""
    made = model(inputs=(rows("x", datatype),), outputs=(rows("y", datatype),))
    inputs = samples.inputs(made, (2,))

    line, header, body, tail = parsed(own_request.content(made, inputs, binary=binary))

    tensor = body["inputs"][0]
    assert "POST /v2/models/m/versions/1/infer HTTP/1.1" == line
    assert ("x", datatype, [2, 3]) == (tensor["name"], tensor["datatype"], tensor["shape"])
    assert binary == ("Inference-Header-Content-Length" in header) == body["parameters"]["binary_data_output"]
    if not binary:
        values = [item.encode() if isinstance(item, str) else item for item in tensor["data"]]
        assert (np.array(values, DTYPES[datatype]).reshape(2, 3) == inputs["x"]).all()
        return
    assert len(tail) == tensor["parameters"]["binary_data_size"]
    if datatype == "BYTES":
        assert b"".join(len(item).to_bytes(4, "little") + item for item in inputs["x"].ravel()) == tail
    else:
        assert (np.frombuffer(tail, DTYPES[datatype]).reshape(2, 3) == inputs["x"]).all()


def test_every_shape_both_ways() -> None:
    """Every shape goes through, as JSON and as binary tensors, at least so many times; each is said before it is sent."""
    sent: list[tuple[int, bool]] = []
    said: list[str] = []

    def exchange(content: bytes) -> bytes:
        _, header, body, _ = parsed(content)
        sent.append((body["inputs"][0]["shape"][0], "Inference-Header-Content-Length" in header))
        assert len(said) == len(sent)
        return OK

    rehearsal.rehearse(model(), exchange, said.append)

    assert {(count, binary) for count in (1, 2, 4) for binary in (True, False)} == set(sent)
    assert min(sent.count(each) for each in set(sent)) >= rehearsal.ROUNDS
    assert "model m/1, shape batch=4, JSON over HTTP" in said


def test_in_brief() -> None:
    """In brief every shape is sent once, what takes long as binary tensors alone, and no p95 is looked at."""
    sent: list[tuple[int, bool]] = []

    def exchange(content: bytes) -> bytes:
        _, header, body, _ = parsed(content)
        sent.append((body["inputs"][0]["shape"][0], "Inference-Header-Content-Length" in header))
        return OK

    run_through.run_through(model(p95_ms=1e-9), exchange, lambda _: None, FULL_SPEED, [1e3, 1e3, 1e3])
    assert [(1, True), (2, True), (4, True)] == sent

    sent.clear()
    run_through.run_through(model(), exchange, lambda _: None, FULL_SPEED, [9, 9, 1e3])

    assert [(1, False), (1, True), (2, False), (2, True), (4, True)] == sent


@pytest.mark.parametrize(("slow", "rounds"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_in_brief_until_as_fast(monkeypatch: pytest.MonkeyPatch, slow: int, rounds: int) -> None:
    """In brief a shape is sent again while it is slower than it should be, a few times."""
    clock = SimpleNamespace(now=0.0, rounds=0)
    monkeypatch.setattr(polite, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now))

    def exchange(_content: bytes) -> bytes:
        clock.rounds += 1
        clock.now += 0.1 if clock.rounds <= slow else 0.02
        return OK

    run_through.run_through(model(batch_sizes=[1]), exchange, lambda _: None, FULL_SPEED, [20.0])

    assert rounds == clock.rounds


def test_long_runs_stand_back() -> None:
    """In brief what takes long runs in the thread that stands back, what is short in the one that serves; then all in that."""
    threads: dict[int, list[int]] = {1: [], 2: []}

    def run(inputs: Tensors) -> Tensors:
        threads[len(inputs["x"])].append(threading.get_ident())
        return {"y": inputs["x"]}

    made = model(run, batch_sizes=[1, 2])

    def exchange(content: bytes) -> bytes:
        rows = parsed(content)[2]["inputs"][0]["shape"][0]
        made.infer(samples.inputs(made, (rows,)))
        return OK

    pace = Polite(lambda: NEVER, aside=True)
    run_through.run_through(made, exchange, lambda _: None, pace, [run_through.LONG_MS, run_through.LONG_MS + 1])
    here = threading.get_ident()
    assert threads[1] == [here]
    assert set(threads[2]) & {here} == set()
    pace.close()
    made.infer(samples.inputs(made, (2,)))
    assert threads[2][-1] == here

    bound = Polite(lambda: NEVER, aside=False)  # a model that only one thread may run
    threads[2].clear()
    run_through.run_through(made, exchange, lambda _: None, bound, [run_through.LONG_MS + 1] * 2)
    assert set(threads[2]) == {here}


def test_bytes_that_json_cannot_carry(tmp_path: Path) -> None:
    """A golden sample that is no text is sent as binary tensors alone."""
    save(tmp_path / "a.npz", {"inputs/x": np.array([[b"\xff", b"", b"a"]]), "outputs/y": np.array([[b"", b"", b""]])})
    kinds = (rows("x", "BYTES"),), (rows("y", "BYTES"),)
    made = model(lambda inputs: inputs, *kinds, folder=tmp_path / "1", golden=["a.npz"])
    headers = []

    def exchange(content: bytes) -> bytes:
        headers.append(parsed(content)[1])
        return OK

    rehearsal.rehearse(made, exchange, lambda _: None)

    assert headers
    assert all("Inference-Header-Content-Length" in header for header in headers)


@pytest.mark.parametrize(
    ("datatype", "value", "fits"),
    [
        ("FP32", np.inf, False),
        ("FP16", -np.inf, False),
        ("BF16", np.inf, False),
        ("FP64", 1e300, True),
        ("BYTES", b"\xff", False),
        ("BYTES", b"text", True),
        ("INT8", 3, True),
        ("BOOL", True, True),
    ],
)
def test_answers_that_json_cannot_carry(datatype: str, value: object, *, fits: bool) -> None:
    """A model whose right answer no JSON can hold is rehearsed with binary tensors alone, and becomes ready."""

    def answer(inputs: Tensors) -> dict[str, Array]:
        return {"y": np.full(inputs["x"].shape, value, DTYPES[datatype])}

    sent = []

    def exchange(content: bytes) -> bytes:
        sent.append("Inference-Header-Content-Length" in parsed(content)[1])
        return OK

    rehearsal.rehearse(model(answer, outputs=(rows("y", datatype),)), exchange, lambda _: None)

    assert ({True, False} if fits else {True}) == set(sent)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (
            b'HTTP/1.1 500 Internal Server Error\r\nX: 200 \r\n\r\n{"error":\n"broken"}',
            'answered HTTP/1.1 500 Internal Server Error: {"error": "broken"}',
        ),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answered HTTP/1.1 503 Service Unavailable:"),
        (b"", "answered nothing:"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\xff", "answered HTTP/1.1 400 Bad Request: "),
        (b"HTTP/1.1 2000 \r\n\r\n", "answered HTTP/1.1 2000"),
    ],
)
def test_not_ok(answer: bytes, part: str) -> None:
    """Any answer but 200 refuses the worker in one line: model, shape, encoding, status, body."""
    with pytest.raises(ModelError) as refused:
        rehearsal.rehearse(model(), lambda _: answer, lambda _: None)

    assert str(refused.value).startswith("model m/1, shape batch=1, JSON over HTTP: ")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


class Clock:
    """A clock that only exchanges move: by `cold` milliseconds the first time a request is sent, by `warm` later."""

    def __init__(self, cold: float, warm: float) -> None:
        """Begin at 0."""
        self.cold = cold
        self.warm = warm
        self.now = 0.0
        self.sent: list[bytes] = []

    def exchange(self, content: bytes) -> bytes:
        """Answer, and let time pass."""
        self.now += (self.warm if content in self.sent else self.cold) / 1e3
        self.sent.append(content)
        return OK

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now

    monotonic = perf_counter


def rehearsed(monkeypatch: pytest.MonkeyPatch, clock: Clock, p95_ms: float | None) -> int:
    """Rehearse by a clock; give how many requests were sent."""
    for module in (rehearsal, polite):
        monkeypatch.setattr(module, "time", clock)
    rehearsal.rehearse(model(batch_sizes=[1], p95_ms=p95_ms), clock.exchange, lambda _: None)
    return len(clock.sent)


def test_p95(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that states a bound must hold it; the line has what it took and the bound."""
    assert 2 * rehearsal.MOST_ROUNDS == rehearsed(monkeypatch, Clock(2, 2), 2.5)
    rehearsed(monkeypatch, Clock(2, 2), None)
    with pytest.raises(ModelError, match=r"^model m/1: p95 of \d+ requests of our own is 2\.0 ms, its p95_ms is 1\.5$"):
        rehearsed(monkeypatch, Clock(2, 2), 1.5)


def test_p95_is_of_what_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round warms the way; a bound that holds from then on holds."""
    rehearsed(monkeypatch, Clock(cold=100, warm=2), 2.5)


def test_slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model is sent few rounds, but never fewer than the least."""
    assert 2 * rehearsal.ROUNDS == rehearsed(monkeypatch, Clock(3000, 3000), None)
