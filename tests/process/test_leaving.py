"""A worker that leaves: it answers all that it has accepted, and no client with a pool of connections sees an error."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from signal import SIGTERM, SIGTTIN, SIGTTOU
from threading import Event

import urllib3

from tests.clients import Client, connected, get, infer
from tests.engines import SLOW, WAITS, Engine
from tests.repeat import Repeat
from tests.server import PATIENCE, Server

HALF = 60


def _leaves(server: Server) -> None:
    """Send TERM, and wait until the worker has heard it."""
    server.send(SIGTERM)
    server.wait(lambda: server.status()["workers"][0]["state"] == "draining", "the worker to leave")


def test_what_sits_in_the_buffers(tmp_path: Path) -> None:
    """TERM while a batch runs: all that was sent behind it is answered, pipelined or not, also what was only sent by half."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, connected(server, 24) as (first, *others):
        engine.hold(server, first)
        pipelining = dict(zip((b"", infer(5)[:HALF], infer(5)[:-1]), others, strict=False))
        for tail, client in pipelining.items():
            client.send(b"".join(infer(number) for number in range(100, 110)), tail)
        for place, client in enumerate(others[3:]):
            client.send(infer(200 + place, 300 + place))
        server.send(SIGTERM)
        server.wait(lambda: server.probe("/readyz")[0] == 503, "readiness to be false")
        engine.open()
        assert first.read().values == [WAITS]
        for client in pipelining.values():
            assert [client.read().values for _ in range(10)] == [[float(number)] for number in range(100, 110)]
        assert [client.read().values for client in others[3:]] == [[200.0 + place, 300.0 + place] for place in range(20)]
        for tail, client in pipelining.items():
            assert not tail or client.ask(infer(5)[len(tail) :]).values == [5.0]
        assert all(client.ends() for client in (first, *others))
        server.clean(0)


def test_what_has_begun(tmp_path: Path) -> None:
    """TERM while requests are being sent: their rest may come, they are answered, and the connections say that they end."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, connected(server, 4) as (*begun, idle), Client(server) as ahead:
        parts = (1, HALF, len(infer(5)) - 1)
        for sent, client in zip(parts, begun, strict=True):
            client.send(infer(5)[:sent])
        assert idle.ask(get("/v2/health/live")).status == 200  # whoever was read after them
        _leaves(server)
        for sent, client in zip(parts, begun, strict=True):
            answer = client.ask(infer(5)[sent:])
            assert answer.values == [5.0]
            assert answer.closes
            assert client.ends()
        assert idle.ends()
        assert ahead.ends()
        server.clean(0)


class _InTurn(urllib3.HTTPConnectionPool):
    """A pool whose connections are used in turn: one that rests for a second may be closed just when it is used again."""

    QueueCls = Queue  # type: ignore[assignment]  # urllib3 takes any queue


@contextmanager
def _pool(server: Server, threads: int, longest: float) -> Iterator[list[object]]:
    """What `threads` threads got who send one request after another through one pool, with pauses up to `longest` seconds."""
    found: list[object] = []
    stopped = Event()
    chance = random.Random(1)  # noqa: S311 - pauses, no secret
    pool = _InTurn(server.host, server.port, maxsize=threads, block=True, retries=False, timeout=30)
    head, _, body = infer(7).partition(b"\r\n\r\n")
    path = head.split(b" ")[1].decode()

    def send() -> None:
        while not stopped.wait(chance.choice((0, 0, chance.random() * longest))):
            try:
                found.append(pool.request("POST", path, body=body).status)
            except urllib3.exceptions.HTTPError as error:
                found.append(error)

    with ThreadPoolExecutor(threads) as executor:
        senders = [executor.submit(send) for _ in range(threads)]
        try:
            yield found
        finally:
            stopped.set()
    pool.close()
    for sender in senders:
        sender.result()


def test_pools_survive_every_change(tmp_path: Path) -> None:
    """A client with a pool and without retries sends through a reload, TTIN and TTOU: no request fails, not one."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path, workers=2) as server, _pool(server, 16, 0.3) as found:
        server.wait(lambda: len(found) > 200, "requests")
        server.reload()
        server.send(SIGTTIN)
        server.wait_state("active", 3)
        server.send(SIGTTOU)
        server.wait(lambda: len(server.status()["workers"]) == 2, "one fewer")
        before = len(found)
        server.wait(lambda: len(found) > before + 200, "requests")
        assert server.status()["generation"] == 2
    assert [each for each in found if each != 200] == []


def test_a_pool_that_rests(tmp_path: Path) -> None:
    """Connections that were idle all through a reload serve the next requests of their pool, or are seen to be closed."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, ThreadPoolExecutor(8) as executor:
        pool = urllib3.HTTPConnectionPool(server.host, server.port, maxsize=8, block=True, retries=False, timeout=30)
        for reloads in (True, False):
            answers = executor.map(lambda _: pool.request("GET", "/v2/health/ready").status, range(64))
            assert set(answers) == {200}
            if reloads:
                server.reload()
                server.wait(lambda: len(server.processes()) == 3, "the old to leave")
        pool.close()


def test_pools_survive_max_requests(tmp_path: Path) -> None:
    """The only worker, once it has served as many requests as gunicorn wants, serves on until another is warm; nobody sees it."""
    engine = Engine(tmp_path)
    engine.put()
    with (
        Server(tmp_path, "--max-requests", "200", "--max-requests-jitter", "100") as server,
        Repeat(lambda: server.probe("/readyz")[0], pause=0.005) as ready,
        _pool(server, 8, 0.1) as found,
    ):
        server.wait_log("Autorestarting worker", count=3)
        server.wait_log("Worker exiting", count=2)
    assert [each for each in found if each != 200] == []
    assert {status for _, status, _ in ready.results} == {200}


def test_a_worker_that_is_told_to_leave_alone(tmp_path: Path) -> None:
    """TERM to one worker, by whoever: the warm pool has its place at once, while a client is still sending it a request."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path, standby=1) as server, Client(server) as client:
        (standby,) = server.wait_state("standby")
        (old,) = server.wait_state("active")
        assert client.ask(infer(5)).values == [5.0]
        client.send(infer(6)[:HALF])
        os.kill(old["pid"], SIGTERM)
        server.wait(lambda: server.wait_state("active")[0]["pid"] == standby["pid"], "the standby to take traffic")
        assert old["pid"] in [worker["pid"] for worker in server.wait_state("draining")]
        assert client.ask(infer(6)[HALF:]).values == [6.0]
        server.wait_state("standby")
        server.wait(lambda: len(server.status()["workers"]) == 2, "the old one to leave")


def test_a_worker_that_leaves_waits_for_no_idle_client(tmp_path: Path) -> None:
    """A hundred idle connections do not keep a worker that leaves."""
    engine = Engine(tmp_path)
    engine.put()
    with Server(tmp_path) as server, connected(server, 100) as clients:
        began = time.monotonic()
        server.send(SIGTERM)
        server.clean(0)
        assert time.monotonic() < began + 20  # a request may take 30 s, so a graceful stop waits for 65
        assert all(client.ends() for client in clients)


def test_load_goes_on(tmp_path: Path) -> None:
    """TERM while clients connect and ask all the time, some for half a second: who can connect is answered, to the end."""
    engine = Engine(tmp_path, slow=0.5)
    engine.put()
    outcomes: list[object] = []

    def ask(server: Server, value: float) -> None:
        while True:
            try:
                with Client(server) as client:
                    outcomes.append(client.ask(infer(value)).status)
            except ConnectionRefusedError:
                return
            except OSError as error:
                outcomes.append(error)

    with Server(tmp_path, workers=2) as server, ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(ask, server, SLOW if place < 4 else 5) for place in range(10)]
        server.wait(lambda: outcomes.count(200) >= 10, "answers")
        server.stop()
        wait(clients, PATIENCE)
    assert set(outcomes) <= {200, 503}  # what is sent to a worker that leaves is refused in words


def test_a_socket_that_outlives_the_server(tmp_path: Path) -> None:
    """A socket that somebody else has bound lets the next server's clients in: it is not shut when the first one stops."""
    engine = Engine(tmp_path)
    engine.put()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        for value in (5.0, 6.0):
            server = Server(tmp_path, "--bind", f"fd://{bound.fileno()}")
            server.sockets = (bound.fileno(),)
            with server, Client(server) as client:
                assert client.ask(infer(value)).values == [value]
        with socket.create_connection(bound.getsockname(), timeout=PATIENCE):
            pass
