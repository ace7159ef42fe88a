"""Requests that are there together run together: in declared sizes, whatever their own, and each gets its own rows back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.clients import Client, body, connected, get, head, infer
from tests.engines import ONE_OR_EIGHT, WAITS, Engine, sizes
from tests.models import row_mixer
from tests.server import Server

DECLARED = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Engine]]:
    """A server of one worker for several tests."""
    engine = Engine(tmp_path_factory.mktemp("models"))
    engine.put()
    with Server(engine.root) as server:
        yield server, engine


@contextmanager
def _serving(engine: Engine, connections: int) -> Iterator[tuple[Server, Client, list[Client]]]:
    """A server of one worker, a client to hold its engine with, and others."""
    with (
        Server(engine.root) as server,
        connected(server, 1) as (first,),
        connected(server, connections) as clients,
    ):
        yield server, first, clients


def _together(server: Server, engine: Engine, first: Client, clients: Sequence[Client], requests: Sequence[bytes]) -> None:
    """Hold the engine with a request of `first` until all `requests` are there, one on each of `clients`."""
    engine.hold(server, first)
    for client, request in zip(clients, requests, strict=True):
        client.send(request)
    engine.open()
    assert first.read().values == [WAITS]


def _statistics(client: Client, model: str = "m") -> dict[str, Any]:
    (found,) = json.loads(client.ask(get(f"/v2/models/{model}/stats")).body)["model_stats"]
    statistics: dict[str, Any] = found
    return statistics


def _cold(server: Server) -> int:
    return sum(worker["cold_dispatches"] for worker in server.status()["workers"])


def test_together(tmp_path: Path) -> None:
    """Requests that wait while the engine is busy are as few batches as they can be, oldest first; one alone is one."""
    engine = Engine(tmp_path)
    engine.put(toml=ONE_OR_EIGHT)
    with _serving(engine, 20) as (server, first, clients):
        numbers = [float(100 + place) for place in range(20)]
        _together(server, engine, first, clients, [infer(number) for number in numbers])
        assert [client.read().values for client in clients] == [[number] for number in numbers]
        _, *batches = engine.runs()
        assert [[value for value in batch if value] for batch in batches] == [numbers[:8], numbers[8:16], numbers[16:]]

        rows = [[200.0, 201.0, 202.0], [203.0], [204.0], [205.0], [206.0, 207.0]]
        _together(server, engine, first, clients[: len(rows)], [infer(*values) for values in rows])
        assert [client.read().values for client in clients[: len(rows)]] == rows
        assert engine.runs()[-1] == [value for values in rows for value in values]

        assert first.ask(infer(7)).values == [7.0]
        assert engine.runs()[-1] == [7.0]
        (worker,) = server.status()["workers"]
        assert worker["requests"] == 28
        assert worker["batches"] == len(engine.runs()) == 7
        assert worker["cold_dispatches"] == 0


def test_pipelined_requests_share_a_batch(tmp_path: Path) -> None:
    """Several requests behind one another on one connection are answered in order, each with its own."""
    engine = Engine(tmp_path)
    engine.put()
    with _serving(engine, 4) as (server, first, clients):
        numbers = [[float(100 * (place + 1) + turn) for turn in range(10)] for place in range(len(clients))]
        requests = [b"".join(infer(number, binary=number % 2 == 0) for number in row) for row in numbers]
        _together(server, engine, first, clients, requests)
        assert [[client.read().values for _ in row] for client, row in zip(clients, numbers, strict=True)] == [
            [[number] for number in row] for row in numbers
        ]
        assert set(sizes(engine.runs())) <= set(DECLARED)


@pytest.mark.parametrize(
    ("rows", "ran"),
    [([20], 20), ([17], 17), ([3, 1, 1, 1, 2], None), ([5], 8), ([3], 4), ([6, 6], None), ([9, 1, 6], None), ([40, 1, 40], None)],
    ids=str,
)
def test_rows(rows: list[int], ran: int | None, served: tuple[Server, Engine]) -> None:
    """More rows than the largest batch are split, several mix with one, padding fills up, and no row is another's.

    `ran`: how many rows run, padding included, where there is but one good way.
    """
    server, engine = served
    with connected(server, 1) as (first,), connected(server, len(rows)) as clients:
        numbers = count(100)
        wanted = [[float(next(numbers)) for _ in range(each)] for each in rows]
        counted, past = _statistics(first)["inference_count"], len(engine.runs())
        _together(server, engine, first, clients, [infer(*values) for values in wanted])
        assert [client.read().values for client in clients] == wanted
        _, *batches = engine.runs()[past:]
        assert set(sizes(batches)) <= set(DECLARED)
        assert ran is None or sum(sizes(batches)) == ran
        assert sorted(value for batch in batches for value in batch if value) == sorted(value for row in wanted for value in row)
        assert _statistics(first)["inference_count"] == counted + sum(rows) + 1
        assert _cold(server) == 0


def test_any_load_within_the_declared_shapes(tmp_path: Path) -> None:
    """Many requests of 1 to 20 rows, many at a time: only declared sizes run, fewer batches than requests, nothing is cold."""
    chance = random.Random(1)  # noqa: S311 - the same sizes each time, no secret
    engine = Engine(tmp_path)
    engine.put()
    with _serving(engine, 16) as (server, first, clients):
        numbers = count(100)
        for _ in range(50):
            wanted = [[float(next(numbers)) for _ in range(chance.choice((1, 1, 1, chance.randint(1, 20))))] for _ in clients]
            binary = [chance.random() < 0.5 for _ in clients]
            for client, values, how in zip(clients, wanted, binary, strict=True):
                client.send(infer(*values, binary=how))
            assert [client.read().values for client in clients] == wanted
        found = _statistics(first)
        assert {entry["batch_size"] for entry in found["batch_stats"]} <= set(DECLARED)
        assert found["inference_count"] == next(numbers) - 100
        assert found["execution_count"] < found["inference_stats"]["success"]["count"] == 800
        assert _cold(server) == 0


def test_rows_that_depend_on_each_other(tmp_path: Path) -> None:
    """A model whose rows failed the proof's batch test runs each request alone, however many are there."""
    engine = Engine(tmp_path)
    engine.put("m")
    engine.put("mixer", row_mixer())
    with _serving(engine, 8) as (server, first, clients):
        (found,) = [model for model in server.status()["models"] if model["name"] == "mixer"]
        assert found["batched"] is False
        contents = [body([float(10 * place + item) for item in range(100, 103)], "FP32", 3) for place in range(8)]
        _together(server, engine, first, clients, [head("mixer", len(content)) + content for content in contents])
        assert [client.read().values for client in clients] == [[0.0, 0.0, 0.0]] * 8  # each is its own mean
        assert sizes(engine.runs()) == [1] * 9

        content = body([101, 102, 103, 201, 202, 203], "FP32", 3)
        assert first.ask(head("mixer", len(content)) + content).values == [-50.0] * 3 + [50.0] * 3
        content = body([101.0] * 9, "FP32", 3)
        refused = first.ask(head("mixer", len(content)) + content)
        assert refused.status == 400
        assert "must be one of 1, 2, 4, 8, got 3" in refused.error
        assert _cold(server) == 0


def test_an_answer_waits_for_no_timer(tmp_path: Path) -> None:
    """A thousand requests one after the other are a thousand batches, and not one of them was held back for company."""
    engine = Engine(tmp_path)
    engine.put()
    with _serving(engine, 0) as (server, first, _):
        for number in range(100, 1100):
            assert first.ask(infer(number)).values == [float(number)]
        (worker,) = server.status()["workers"]
        assert worker["batches"] == worker["requests"] == 1000
        assert _statistics(first)["inference_stats"]["queue"]["ns"] < 1_000_000_000  # what a delay of a millisecond would make
