"""What goes wrong inside a batch stays with whom it belongs to: a bad item, a client that left, a flood on another model."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.clients import Answer, Client, body, connected, head, infer
from tests.engines import ONE_OR_EIGHT, RAISES, WAITS_TOO, Engine, sizes
from tests.models import graph
from tests.server import Server

FAILED = r"model \w+/1 failed on a request"


@pytest.mark.parametrize("bad", [[3], [0, 7], [5, 8, 11, 15]], ids=["one", "two", "four"])
def test_one_bad_item(bad: list[int], tmp_path: Path) -> None:
    """Whoever makes the engine raise gets 500, and nobody else of the batch: they have their answers, and none another's."""
    engine = Engine(tmp_path)
    engine.put(toml=ONE_OR_EIGHT)
    with Server(tmp_path) as server, connected(server, 1) as (first,), connected(server, 16) as clients:
        server.expect(FAILED, "Traceback")
        values = [RAISES if place in bad else float(100 + place) for place in range(16)]
        engine.hold(server, first)
        for client, value in zip(clients, values, strict=True):
            client.send(infer(value))
        engine.open()
        assert first.read().status == 200

        for value, client in zip(values, clients, strict=True):
            answer = client.read()
            if value == RAISES:
                assert answer.status == 500
                assert answer.error == "model 'm' failed"
            else:
                assert answer.values == [value]
        assert sizes(engine.runs())[1] == 8, "they did not share a batch"
        assert [client.ask(infer(7)).values for client in clients] == [[7.0]] * 16, "not all connections are good for more"
        (worker,) = server.status()["workers"]
        assert worker["errors"] == len(bad)
        assert worker["cold_dispatches"] == 0


def test_a_row_that_the_model_itself_refuses(tmp_path: Path) -> None:
    """The same with a failure of the engine's own: an index that the model's table has no row for."""
    table = np.arange(10, dtype=np.float64) * 10
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    engine = Engine(tmp_path)
    engine.put("table", graph([node], {"x": ("INT64", ["batch", 1])}, {"y": ("FP64", ["batch", 1])}, {"table": table}))
    engine.put()
    with Server(tmp_path) as server, connected(server, 1) as (first,), connected(server, 8) as clients:
        server.expect(FAILED, "Traceback")
        engine.hold(server, first)
        indices = [2, 3, 4, 99, 5, 6, 7, 8]
        for client, index in zip(clients, indices, strict=True):
            content = body([index], "INT64")
            client.send(head("table", len(content)) + content)
        engine.open()
        answers = [client.read() for client in clients]
        assert [answer.status for answer in answers] == [500 if index == 99 else 200 for index in indices]
        assert [answer.values[0] for answer in answers if answer.status == 200] == [20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]


def test_a_bad_part_of_a_large_request(tmp_path: Path) -> None:
    """A request that is split fails as a whole where one part does, and those who shared its batches do not."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, connected(server, 1) as (first,), connected(server, 3) as clients:
        server.expect(FAILED, "Traceback")
        engine.hold(server, first)
        requests = ([100.0], [*map(float, range(200, 219)), RAISES], [300.0, 301.0])
        for client, values in zip(clients, requests, strict=True):
            client.send(infer(*values))
        engine.open()
        answers = [client.read() for client in clients]
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert [answers[0].values, answers[2].values] == [[100.0], [300.0, 301.0]]


@pytest.mark.parametrize("rows", [1, 8], ids=["rows", "batches"])
def test_a_flood_on_another_model(rows: int, tmp_path: Path) -> None:
    """A request to one model runs next but one, at the latest, whatever waits for another, and oldest first within each."""
    engine = Engine(tmp_path)
    engine.put("m")
    engine.put("other")
    with Server(tmp_path) as server, connected(server, 1) as (first,), connected(server, 102) as (*flood, one, two):
        engine.hold(server, first)
        for place, client in enumerate(flood):
            client.send(infer(*[float(100 + place)] * rows))
        one.send(infer(1000, model="other"))
        two.send(infer(1001, model="other"))
        engine.open()
        assert one.read().values == [1000.0]
        assert two.read().values == [1001.0]
        assert [client.read().values for client in flood] == [[float(100 + place)] * rows for place in range(len(flood))]

        runs = engine.runs()[1:]
        (place,) = [place for place, run in enumerate(runs) if 1000 in run]
        assert place <= 1
        assert 1001 in runs[place]
        values = [value for run in runs if 1000 not in run for value in run if value]
        assert values == sorted(values)


def test_a_client_that_left(tmp_path: Path) -> None:
    """Nobody runs the request of a client that is gone before its batch: neither one that was not read yet nor one that waits."""
    engine = Engine(tmp_path)
    engine.put(toml=ONE_OR_EIGHT)
    with (
        Server(tmp_path) as server,
        connected(server, 1) as (first,),
        connected(server, 12) as (*clients, unread, waits, in_both),
    ):
        engine.close(WAITS_TOO)
        engine.hold(server, first)
        unread.send(infer(777), infer(778)[:-1])
        unread.reset()
        for client in clients[:7]:
            client.send(infer(WAITS_TOO))
        in_both.send(infer(WAITS_TOO) + infer(999))
        waits.send(infer(888))
        clients[7].send(infer(100))
        engine.open()
        assert first.read().status == 200

        server.wait(lambda: engine.ran(WAITS_TOO), "the first batch in the engine")
        assert sizes(engine.runs())[-1] == 8, "the others do not wait for it"
        waits.reset()
        in_both.reset()
        engine.open(WAITS_TOO)
        assert [client.read().values for client in clients[:8]] == [[WAITS_TOO]] * 7 + [[100.0]]
        assert [client.ask(infer(7)).values for client in clients] == [[7.0]] * len(clients)
        assert [value for value in (777, 778, 888, 999) if engine.ran(value)] == []
        assert server.status()["workers"][0]["cold_dispatches"] == 0


def _final(client: Client) -> Answer:
    """The next answer that is not 100: such a client may be asked whether it is still there."""
    while (answer := client.read()).status == 100:
        pass
    return answer


def test_a_client_that_only_sends_no_more(tmp_path: Path) -> None:
    """A client that has shut down its side waits for its answer, and gets it."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, connected(server, 1) as (first,), connected(server, 2) as (half, both):
        engine.hold(server, first)
        half.send(infer(100))
        half.socket.shutdown(socket.SHUT_WR)
        both.send(infer(101) + infer(102))
        both.socket.shutdown(socket.SHUT_WR)
        engine.open()
        assert _final(half).values == [100.0]
        assert half.ends()
        assert [_final(both).values for _ in range(2)] == [[101.0], [102.0]]
        assert both.ends()
