"""Requests that are sent by half and held open, many more than a worker could wait for: nobody else is kept waiting by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from tests.clients import Client, connected, get, head, infer, padded
from tests.models import identity, put
from tests.server import Server

SILENT, DRIPPING = 400, 100
"""Requests that are held open, 500 in all: some send no more, some a byte now and then."""
NORMAL = 100
"""Rounds of normal traffic, each of them two inferences, one health request and two probes."""
SILENT_SECONDS = 5.0
"""A head must be there so long after its first byte, and a body may be silent for so long."""
REQUEST_TIMEOUT = 8.0
"""A body must be there so long after its request began, whether or not it is silent."""
SLACK = 5.0
"""Seconds for a busy machine."""

WHOLE = infer(1)
LARGE = padded(1, 200_000)
"""A request that comes in many pieces."""
HALVES = (
    b"P",
    b"POST /v2/models/m/infer HTT",
    get("/v2/health/live")[:-2],
    WHOLE[:60],
    head("m", 100),
    WHOLE[:-1],
    get("/v2/models/m/infer", "Transfer-Encoding: chunked", method="POST"),
    get("/v2/models/m/infer", "Transfer-Encoding: chunked", method="POST") + b"20\r\n{",
    get("/v2/health/live") + WHOLE[:-1],
)
"""Beginnings of requests; the last comes behind a whole one."""


DRIPPED = (
    get("/v2/health/live")[:-2] + b"Slow: ",
    head("m", 10_000),
    get("/v2/models/m/infer", "Transfer-Encoding: chunked", method="POST") + b"fff\r\n",
)
"""The same, which a byte every half second brings no nearer to their end."""


@contextmanager
def _drip(clients: list[Client]) -> Iterator[None]:
    """Send one more byte on each of `clients` every half second, as long as it takes any."""
    stopped = Event()

    def send() -> None:
        left = list(clients)
        while not stopped.wait(0.5):
            for client in left[:]:
                try:
                    client.send(b"a")
                except OSError:
                    left.remove(client)

    thread = Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _normal(server: Server, client: Client, held: Sequence[Client] = ()) -> float:
    """Normal traffic and probes, all of them answered while every one of `held` is open: the median latency in seconds."""
    seconds = []
    for turn in range(NORMAL):
        for request in (infer(turn + 1), LARGE, get("/v2/health/ready")):
            began = time.monotonic()
            assert client.ask(request).status == 200
            seconds.append(time.monotonic() - began)
        assert server.probe("/readyz")[0] == 200
        assert server.probe("/livez")[0] == 200
    assert all(each.quiet() for each in held)
    return median(seconds)


def _refused(clients: Sequence[Client], since: float) -> float:
    """Each gets 408 and is closed: how long after `since` the last one did."""
    for client in clients:
        answer = client.read()
        assert answer.status == 408, answer
        assert answer.error
        assert answer.closes
    return time.monotonic() - since


def test_five_hundred_half_sent_requests(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    """Normal requests and probes go on as without them while all are open; each then gets 408 and is closed, in its time."""
    put(tmp_path, "m", identity("FP64", 1))
    with (
        Server(tmp_path, request_timeout=REQUEST_TIMEOUT) as server,
        Client(server) as normal,
        Client(server) as ahead,
        ExitStack() as stack,
    ):
        worker = psutil.Process(server.wait_state("active")[0]["pid"])
        before = _normal(server, normal)
        descriptors = worker.num_fds()
        silent = stack.enter_context(connected(server, SILENT))
        dripping = stack.enter_context(connected(server, DRIPPING))
        began = time.monotonic()
        for client, half in zip(silent, cycle(HALVES), strict=False):
            client.send(half)
        for client, half in zip(dripping, cycle(DRIPPED), strict=False):
            client.send(half)
        for client in silent[len(HALVES) - 1 :: len(HALVES)]:
            assert client.read().status == 200
        with _drip(dripping):
            during = _normal(server, normal, [*silent, *dripping])
            assert ahead.ask(infer(1)).values == [1.0], "a connection that was opened ahead and said nothing yet"
            assert _refused(silent, began) < SILENT_SECONDS + SLACK
            assert _refused(dripping, began) < REQUEST_TIMEOUT + SLACK
        after = _normal(server, normal)
        server.wait(lambda: worker.num_fds() == descriptors, "the descriptors of those that were held")

    record_property("median_ms", [round(each * 1e3, 2) for each in (before, during, after)])
    assert during < 5 * max(before, after)


@pytest.mark.parametrize("half", [WHOLE[:60], WHOLE[:-1]], ids=["head", "body"])
def test_it_may_still_be_sent_to_its_end(half: bytes, tmp_path: Path) -> None:
    """A request that comes slowly, but in time, is answered; so is the next on its connection."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path) as server, Client(server) as slow, Client(server) as other:
        slow.send(half)
        for number in range(2, 200):
            assert other.ask(infer(number)).values == [float(number)]
        assert slow.ask(WHOLE[len(half) :]).values == [1.0]
        assert slow.ask(infer(3)).values == [3.0]
