"""What a worker holds for its clients is bounded: connections, bodies that arrive, answers that nobody takes."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import psutil

from tests.clients import Client, connected, get, head, infer, padded
from tests.models import identity, put
from tests.server import PATIENCE, Server

MOST = 50
LIMIT = 8 << 20
WIDTH = 250_000
"""Numbers of a row whose answer is 2 MB, more than any socket buffer takes here."""
WIDE = np.arange(WIDTH, dtype=np.float64).tobytes()
ASK_WIDE = head("wide", len(WIDE), "Inference-Header-Content-Length: 0") + WIDE


def _worker(server: Server) -> psutil.Process:
    return psutil.Process(server.wait_state("active")[0]["pid"])


def test_idle_connections_make_room(tmp_path: Path) -> None:
    """As many connections as gunicorn allows, all idle: a new client is served, at the cost of who was idle for longest."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, "--worker-connections", str(MOST)) as server, connected(server, MOST) as idle:
        assert idle[0].ask(infer(7)).values == [7.0]  # now the second is the one
        with Client(server) as new:
            assert new.ask(infer(1)).values == [1.0]
        assert idle[1].ends()
        assert [client.ask(infer(2)).values for client in (idle[0], *idle[2:])] == [[2.0]] * (MOST - 1)


def test_busy_connections_make_room_when_they_are_late(tmp_path: Path) -> None:
    """As many, all of them half-sent requests: a new client waits in the kernel, and is served when those are refused."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, "--worker-connections", str(MOST)) as server, connected(server, MOST) as busy:
        for client in busy:
            client.send(get("/v2/health/live") + infer(1)[:-1])  # the answer to the first shows that the second was read
        assert {client.read().status for client in busy} == {200}
        with Client(server) as new:
            new.send(infer(1))
            assert {client.read().status for client in busy} == {408}
            assert new.read().values == [1.0]


def test_no_more_descriptors(tmp_path: Path) -> None:
    """Where the kernel gives no more descriptors, idle connections make room as well, and the log says so."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path) as server, ExitStack() as stack:
        worker = _worker(server)
        most = worker.num_fds() + MOST
        worker.rlimit(resource.RLIMIT_NOFILE, (most, most))
        clients = []
        for _ in range(MOST + 10):
            clients.append(stack.enter_context(Client(server)))
            assert clients[-1].ask(infer(7)).values == [7.0]
        assert [client.ask(infer(7)).values for client in clients[-MOST // 2 :]] == [[7.0]] * (MOST // 2)
        assert clients[0].ends()
        server.wait_log(r"could not be accepted: .*Too many open files")
        assert worker.num_fds() <= most
        assert server.probe("/readyz")[0] == 200


def test_declared_and_never_sent(tmp_path: Path) -> None:
    """Bodies as large as may be of which one byte comes cost nobody else: others send theirs, small or large, as without them."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, max_body=LIMIT) as server, connected(server, 20) as held, Client(server) as other:
        for client in held:
            client.send(head("m", LIMIT) + b"{")
        for number in range(1, 20):
            assert other.ask(infer(number)).values == [float(number)]
            assert other.ask(padded(number, 200_000)).values == [float(number)]


def test_bodies_that_arrive(tmp_path: Path) -> None:
    """More large bodies at once than a worker holds: some are refused with Retry-After, the others and all small ones served."""
    put(tmp_path, "wide", identity("FP64", WIDTH), "")
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, max_body=LIMIT) as server, connected(server, 20) as clients, Client(server) as small:
        before = _worker(server).memory_info().rss
        for client in clients:
            client.send(ASK_WIDE[:-1])
            assert small.ask(infer(7)).values == [7.0]
        refused = [client for client in clients if not client.quiet()]
        assert 0 < len(refused) < len(clients)
        assert _worker(server).memory_info().rss - before < 8 * LIMIT
        for client in clients:
            if client in refused:
                answer = client.read()
                assert answer.status == 503
                assert int(answer.header("Retry-After") or 0) >= 1
            else:
                assert client.ask(ASK_WIDE[-1:]).values == list(range(WIDTH))
        with Client(server) as again:
            assert again.ask(ASK_WIDE).values == list(range(WIDTH))


def test_a_client_that_reads_nothing(tmp_path: Path) -> None:
    """Whoever asks and asks and takes no answer is read no further, cut off in time, and costs nobody else anything."""
    put(tmp_path, "wide", identity("FP64", WIDTH), "")
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, max_body=LIMIT) as server, Client(server, timeout=0.1) as deaf, Client(server) as other:
        worker = _worker(server)
        assert other.ask(infer(1)).values == [1.0]
        before = worker.memory_info().rss
        end = time.monotonic() + PATIENCE
        for number in count(1):
            assert time.monotonic() < end, "it is never cut off"
            assert other.ask(infer(number)).values == [float(number)]
            assert worker.memory_info().rss - before < 16 * LIMIT
            try:
                deaf.send(ASK_WIDE if number < 4 else get("/v2/models/m/stats") * 100)
            except TimeoutError:
                continue
            except ConnectionError:
                break


def test_a_client_that_reads_slowly(tmp_path: Path) -> None:
    """Whoever takes a large answer a little at a time gets all of it, and the next one; others do not wait for it."""
    put(tmp_path, "wide", identity("FP64", WIDTH), "")
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, max_body=LIMIT) as server, Client(server) as slow, Client(server) as other:
        slow.send(ASK_WIDE, ASK_WIDE)
        for _ in range(2):
            while (answer := slow.next()) is None:
                slow.received += slow.socket.recv(1 << 14)
                assert other.ask(get("/v2/health/live")).status == 200
            assert answer.values == list(range(WIDTH))
