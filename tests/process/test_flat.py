"""100,000 requests of every kind leave nothing behind: memory, descriptors, threads, greenlets and objects stay as they were."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.clients import Client, body, get, head, infer
from tests.models import identity, put
from tests.server import Server

WARM, ALL = 20_000, 100_000
THREADS = 4
MOST_BYTES = 4 << 20
"""Of memory, between the two looks. One greenlet left behind by one request in twenty would be more."""
MOST_OBJECTS = (ALL - WARM) // 100
LIMIT = 1 << 20

_CENSUS = """
import gc
import numpy as np
from greenlet import greenlet

def preprocess(inputs):
    if inputs["x"][0, 0] != 2:
        return inputs
    gc.collect()
    objects = gc.get_objects()
    return {"x": np.array([[len(objects), sum(isinstance(each, greenlet) for each in objects), 0]], np.float64)}
"""
"""The Python beside a model, which lives in the worker and can count what is there."""

BODY = body([100, 101])
PACKED = gzip.compress(BODY)
CHUNKS = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (20, BODY[:20], len(BODY) - 20, BODY[20:])
CHUNKED = get("/v2/models/m/infer", "Transfer-Encoding: chunked", method="POST")
KEPT: tuple[tuple[bytes, int], ...] = (
    (infer(100), 200),
    (infer(100, 101, binary=True), 200),
    (infer(*range(100, 120)), 200),
    (get("/v2/health/ready"), 200),
    (head("m", 5) + b"{nope", 400),
    (head("m", len(BODY)) + BODY.replace(b"FP64", b"FP32"), 400),
    (infer(100, model="nobody"), 404),
    (get("/nowhere"), 404),
    (get("/v2/models/m/infer"), 405),
    (get("/v2/models/m/stats"), 200),
    (CHUNKED + CHUNKS, 200),
    (head("m", len(PACKED), "Content-Encoding: gzip") + PACKED, 200),
    (infer(101), 200),
)
"""Requests that leave their connection open, and what they get."""
CLOSING: tuple[tuple[bytes, int], ...] = (
    (get("/v2/health/live", "Connection: close"), 200),
    (get("/v2/health/live").replace(b"1.1", b"1.0"), 200),
    (b"nonsense\r\n\r\n", 400),
    (get("/v2/models/m/infer", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST"), 400),
    (head("m", 2 * LIMIT), 413),
    (CHUNKED + b"xyz\r\n", 400),
)
"""Requests that end it."""
LEFT = (infer(100), infer(100)[:60], infer(100)[:-1], infer(100) + infer(101) + infer(102)[:-1], CHUNKED + CHUNKS[:-9])
"""What clients have sent when they leave."""


@dataclass
class Round:
    """A thread's share of the load: what is sent next."""

    server: Server
    client: Client
    closing: Iterator[tuple[bytes, int]]
    left: Iterator[bytes]

    @classmethod
    def of(cls, server: Server) -> Self:
        """Begin."""
        return cls(server, Client(server), itertools.cycle(CLOSING), itertools.cycle(LEFT))

    def go(self) -> int:
        """Send every kind that is kept, pipelined and one by one, then some others; how many requests."""
        self.client.send(b"".join(request for request, _ in KEPT))
        assert [self.client.read().status for _ in KEPT] == [status for _, status in KEPT]
        for request, status in KEPT[:3]:
            assert self.client.ask(request).status == status
        assert self.client.send(get("/v2/health/live", method="HEAD")).read(bodiless=True).status == 200
        for request, status in itertools.islice(self.closing, 2):
            with Client(self.server) as client:
                assert client.ask(request).status == status
                assert client.ends()
        leaver = Client(self.server).send(next(self.left))
        leaver.reset()
        return len(KEPT) + 3 + 1 + 2 + 1


def _send(server: Server, requests: int) -> None:
    """Send so many requests of every kind, at least, from several threads."""

    def send(_: int) -> None:
        rounds, sent = Round.of(server), 0
        while sent < requests / THREADS:
            sent += rounds.go()
        rounds.client.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, range(THREADS)))


def _look(server: Server, worker: psutil.Process, descriptors: int) -> dict[str, float]:
    """What the worker holds, with no connection but the one that asks; that must come down to so many descriptors."""
    with Client(server) as client:
        content = body([2, 0, 0], width=3)
        assert client.ask(head("census", len(content)) + content).status == 200
        server.wait(lambda: worker.num_fds() == descriptors, "the descriptors of the load to go", 30)
        objects, greenlets, _ = client.ask(head("census", len(content)) + content).values
    return {
        "private": worker.memory_full_info().uss,
        "threads": worker.num_threads(),
        "objects": objects,
        "greenlets": greenlets,
    }


@pytest.mark.timeout(600)
def test_a_hundred_thousand_requests(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    """After 100,000 good, bad, aborted, pipelined and chunked requests the worker holds what it held after 20,000."""
    put(tmp_path, "m", identity("FP64", 1))
    put(tmp_path, "census", identity("FP64", 3), "", _CENSUS)
    with Server(tmp_path, max_body=LIMIT) as server:
        worker = psutil.Process(server.wait_state("active")[0]["pid"])
        descriptors = worker.num_fds() + 1
        _send(server, WARM)
        before = _look(server, worker, descriptors)
        _send(server, ALL - WARM)
        after = _look(server, worker, descriptors)
        said = [line for line in server.lines if "[INFO]" not in line and "Invalid request from ip=127.0.0.1" not in line]
        assert [each["pid"] for each in server.wait_state("active")] == [worker.pid]

    record_property("before", before)
    record_property("after", after)
    print(before, after)  # noqa: T201 - what a failure needs
    assert after["threads"] == before["threads"]
    assert after["greenlets"] <= before["greenlets"] + 1
    assert after["objects"] < before["objects"] + MOST_OBJECTS
    assert after["private"] < before["private"] + MOST_BYTES
    assert said == []
