"""More than the server can do, for longer than any queue lasts: it refuses the rest at once, and then all is as before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.clients import Client, arrivals, infer
from tests.engines import Engine
from tests.repeat import Repeat
from tests.server import Server

LARGEST = 8
BATCH_SECONDS = 0.05
CAPACITY = LARGEST / BATCH_SECONDS
"""Requests per second at most: a run waits so long, whatever its size. No machine is faster."""
TIMES = 3
SECONDS = 20
QUEUE = 32
FIRST = 1000
"""The first of the numbers by which requests are known, each its own."""


def _alone(server: Server) -> float:
    """The median latency of requests that nobody competes with, in seconds."""
    seconds = []
    with Client(server) as client:
        for place in range(20):
            began = time.monotonic()
            assert client.ask(infer(100 + place)).status == 200
            seconds.append(time.monotonic() - began)
    return median(seconds)


def _most_waiting(engine: Engine, served: set[float]) -> int:
    """The most requests that were in the worker at once, of those that it served: begun there, and their batch not yet run."""
    waiting: set[float] = set()
    most = 0
    for what, values in engine.lines():
        if what == "request":
            waiting |= served & set(values)
            most = max(most, len(waiting))
        else:
            waiting -= set(values)
    return most


@pytest.mark.timeout(300)
def test_three_times_the_capacity(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    """Every request gets its answer or 503 with Retry-After, the queue keeps its bound, probes go on, and latency comes back."""
    engine = Engine(tmp_path, seconds=BATCH_SECONDS)
    engine.put()
    with Server(tmp_path, max_queue=QUEUE) as server:
        before = _alone(server)
        numbers = [float(FIRST + place) for place in range(int(TIMES * CAPACITY * SECONDS))]
        with Repeat(lambda: server.probe("/readyz")[0], pause=0.05) as ready:
            found = arrivals(server, [infer(number) for number in numbers], TIMES * CAPACITY)
        after = _alone(server)
        (worker,) = server.status()["workers"]

    answers = [arrival.answer for arrival in found]
    assert {answer.status for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert all(int(answer.header("Retry-After") or 0) >= 1 for answer in refused)
    assert all("WARMFORK_MAX_QUEUE" in answer.error for answer in refused)
    served = {answer.values[0] for answer in answers if answer.status == 200}
    assert len(served) == len(answers) - len(refused), "one was answered twice, or with another's"
    assert served <= set(numbers)
    assert {status for _, status, _ in ready.results} == {200}

    assert _most_waiting(engine, served) <= QUEUE + LARGEST
    assert len(served) >= CAPACITY * SECONDS / 2, "much of its capacity went into refusing"
    assert worker["cold_dispatches"] == 0
    assert worker["errors"] == len(refused)
    assert after < 2 * before
    record_property("served", len(served))
    record_property("seconds_alone", [round(before, 4), round(after, 4)])
