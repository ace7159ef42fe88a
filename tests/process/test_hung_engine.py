"""An engine that hangs far past its limit: who waits is told, the worker is replaced, the others do not notice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import psutil
import pytest

from tests.clients import Client, get, infer
from tests.engines import HANGS, HOLDS, WAITS, Engine
from tests.repeat import Repeat
from tests.server import Server

LIMIT = 3.0
SLACK = 15.0
"""Seconds for a busy machine, and for what the worker itself waits before it gives an engine up."""
REPLACED = (r"(?i)an inference hangs", r"ended with status 70", r"Worker \(pid:\d+\) exited with code 70")


def _owned(server: Server, pid: int, other: int) -> Client:
    """A connection to the worker `pid`, on which an answer came: the other one stands still meanwhile."""
    os.kill(other, SIGSTOP)
    try:
        client = Client(server)
        while client.ask(get("/v2/health/live")).closes:  # it cannot know yet that the other will have as many
            client.close()
            client = Client(server)
        ports = {each.raddr[1:] for each in psutil.Process(pid).net_connections("tcp4")}
    finally:
        os.kill(other, SIGCONT)
    assert client.socket.getsockname()[1:] in ports
    return client


@contextmanager
def _two(tmp_path: Path, *arguments: str) -> Iterator[tuple[Server, Engine, int, list[Client], list[Client]]]:
    """A server of two workers, the one to hang and another, with as many connections to each: their shares."""
    engine = Engine(tmp_path)
    engine.put()
    engine.put("other")
    with Server(tmp_path, *arguments, workers=2, request_timeout=LIMIT) as server, ExitStack() as stack:
        victim, other = (worker["pid"] for worker in server.wait_state("active", 2))
        clients, well = [], []
        for _ in range(14):
            clients.append(stack.enter_context(_owned(server, victim, other)))
            well.append(stack.enter_context(_owned(server, other, victim)))
        made = time.monotonic()
        server.wait(lambda: time.monotonic() > made + 1, "each worker to know of the other's connections")
        yield server, engine, victim, clients, well


@contextmanager
def _asking(server: Server, client: Client) -> Iterator[Repeat]:
    """Ask all the time on a kept connection, and on another when the server has said that this one ends, as it may.

    The new one of a worker that was replaced gets its share of the connections.
    """
    with ExitStack() as stack:
        at = [client]

        def ask() -> str:
            answer = at[0].ask(infer(7))
            if answer.closes:
                at[0] = stack.enter_context(Client(server))
            return str(answer.values)

        with Repeat(ask, pause=0.01) as asking:
            yield asking


def _replaced(server: Server, victim: int) -> None:
    """The worker is gone in time, and another has its place."""
    server.wait(lambda: victim not in server.processes(), "the end of the worker", LIMIT + SLACK)
    server.wait(lambda: victim not in {worker["pid"] for worker in server.wait_state("active", 2)}, "the replacement")
    assert server.probe("/readyz")[0] == 200
    for place in range(20):
        assert server.request("POST", "/v2/models/m/infer", infer(100 + place).partition(b"\r\n\r\n")[2])[0] == 200


def test_all_who_wait_are_told(tmp_path: Path) -> None:
    """504 to all of its batch, to those queued behind it and for another model, and to the first of what was pipelined."""
    with _two(tmp_path) as (server, engine, victim, (first, *clients, pipelining), (well, *_)):
        server.expect(*REPLACED)
        engine.hold(server, first)
        for place, client in enumerate(clients):
            client.send(infer(HANGS if place == 2 else 100 + place, model="other" if place == 11 else "m"))
        pipelining.send(infer(200) + infer(201, model="other") + infer(202))
        with _asking(server, well) as asking:
            engine.open()
            began = time.monotonic()
            assert first.read().values == [WAITS]
            answers = [client.read() for client in clients] + [pipelining.read()]
            assert pipelining.ends()
            took = time.monotonic() - began
            _replaced(server, victim)

        server.wait_log("most recent call first")
        late = [answer for answer in answers if answer.status != 200]
        assert len(late) >= 8
        assert {answer.status for answer in late} == {504}
        assert all("WARMFORK_REQUEST_TIMEOUT" in answer.error for answer in late)
        assert took < LIMIT + SLACK
        assert {values for _, values, _ in asking.results} == {"[7.0]"}
        assert max(seconds for _, _, seconds in asking.results) < LIMIT


def test_who_comes_later(tmp_path: Path) -> None:
    """Whoever sends while the engine hangs, on a connection of that worker, is told or cut off in time; a new one is served."""
    with _two(tmp_path) as (server, engine, victim, (first, *clients), (well, *_)):
        server.expect(*REPLACED)
        first.send(infer(HANGS))
        server.wait(lambda: engine.ran(HANGS), "the hang")
        began = time.monotonic()
        for client in clients:
            client.send(infer(100))
        assert first.read().status == 504
        for client in clients:
            try:
                assert client.read().status == 504
            except ConnectionError:
                continue
        assert time.monotonic() - began < LIMIT + SLACK
        assert well.ask(infer(7)).values == [7.0]
        _replaced(server, victim)


def test_the_lock_is_held_too(tmp_path: Path) -> None:
    """A native call that hangs with the interpreter's lock lets no watchdog answer: gunicorn's own limit ends the worker."""
    with _two(tmp_path, "--timeout", str(int(2 * LIMIT))) as (server, engine, victim, (first, *_), (well, *_)):
        server.expect("WORKER TIMEOUT", r"worker \d+ \(\w+\): killed by SIGKILL", r"Worker \(pid:\d+\) was sent SIGKILL")
        first.send(infer(HOLDS))
        server.wait(lambda: engine.ran(HOLDS), "the hang")
        with _asking(server, well) as asking:
            with pytest.raises(ConnectionError):
                first.read()
            _replaced(server, victim)
        assert {values for _, values, _ in asking.results} == {"[7.0]"}
