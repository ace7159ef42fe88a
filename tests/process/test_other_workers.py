"""The same app under gunicorn's own workers: no batching, and all else as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from tests.clients import Client, get, head, infer
from tests.engines import RAISES, Engine, sizes
from tests.server import Server

LIMIT = 1 << 20


KINDS = {"sync": 1, "gthread": 4}
"""gunicorn's workers, and with how many threads: it takes one with more than one for `gthread`, whatever it was asked for."""


@pytest.fixture(params=KINDS, scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Engine]]:
    """A server of two such workers."""
    engine = Engine(tmp_path_factory.mktemp(request.param))
    engine.put()
    with Server(engine.root, "-k", request.param, "--threads", str(KINDS[request.param]), workers=2, max_body=LIMIT) as server:
        server.wait_log(f"Using worker: {request.param}")
        yield server, engine


def _ask(server: Server, request: bytes) -> tuple[int, list[float]]:
    """Status and, of a result, the values, on a connection of its own."""
    with Client(server) as client:
        answer = client.ask(request)
        return answer.status, answer.values if answer.status == 200 else []


def _statistics(server: Server) -> dict[str, Any]:
    (found,) = json.loads(server.request("GET", "/v2/models/m/stats")[2])["model_stats"]
    statistics: dict[str, Any] = found
    return statistics


def test_inference(running: tuple[Server, Engine]) -> None:
    """JSON and binary, of one row, of several, of more than the largest batch; many at once; only declared shapes run."""
    server, engine = running
    wanted = [[float(100 * place + row) for row in range(rows)] for place, rows in enumerate((1, 2, 3, 8, 9, 20), 1)]
    for values in wanted:
        for binary in (False, True):
            assert _ask(server, infer(*values, binary=binary)) == (200, values)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda values: _ask(server, infer(*values)), wanted * 8)
        assert list(found) == [(200, values) for values in wanted * 8]
    assert set(sizes(engine.runs())) <= {1, 2, 4, 8}
    assert sum(worker["cold_dispatches"] for worker in server.status()["workers"]) == 0


def test_refusals(running: tuple[Server, Engine]) -> None:
    """What is refused is refused in the same words: as JSON, with the status of the contract, and others are served on."""
    server, _ = running
    server.expect(r"model m/1 failed on a request", "Traceback")
    for request, status in (
        (head("m", 5) + b"{nope", 400),
        (head("m", LIMIT + 1), 413),
        (infer(1, model="nobody"), 404),
        (get("/v2/models/m/infer"), 405),
        (infer(RAISES), 500),
    ):
        with Client(server) as client:
            answer = client.ask(request)
            assert answer.status == status
            assert list(json.loads(answer.body)) == ["error"]
        assert _ask(server, infer(7)) == (200, [7.0])


def test_health_and_statistics(running: tuple[Server, Engine]) -> None:
    """The other routes are there, and count what all workers did."""
    server, _ = running
    before = _statistics(server)
    for _ in range(10):
        assert _ask(server, infer(7, 8)) == (200, [7.0, 8.0])
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/stats"):
        assert server.request("GET", path)[0] == 200
    after = _statistics(server)
    assert after["inference_count"] - before["inference_count"] == 20
    assert after["execution_count"] - before["execution_count"] == 10


def test_changes(running: tuple[Server, Engine]) -> None:
    """A reload opens as a whole, a killed worker is replaced, and TERM ends all with 0. The last test of each server."""
    server, _ = running
    server.reload()
    assert _ask(server, infer(7)) == (200, [7.0])
    server.expect("was sent SIGKILL", "killed by SIGKILL", r"worker \d+ \(\w+\): ended$")  # between our look and gunicorn's
    victim = server.wait_state("active", 2)[0]["pid"]
    os.kill(victim, SIGKILL)
    server.wait(lambda: victim not in {worker["pid"] for worker in server.wait_state("active", 2)}, "the replacement")
    assert [_ask(server, infer(7)) for _ in range(10)] == [(200, [7.0])] * 10
    server.send(SIGTERM)
    server.clean(0)
