"""Nobody gets another's answer: 10,000 requests, each with a number of its own, through all that may mix them up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.clients import Client, infer
from tests.engines import SLOW, Engine
from tests.server import Server

REQUESTS = 10_000
THREADS = 8
TIMEOUT = 1.0
SLOW_SECONDS = 0.4
"""Three slow runs in a row make those behind them late."""
ROWS = (1, 1, 1, 1, 2, 3, 8, 9, 20)
BURSTS, BURST = 4, 6

Request = tuple[list[float], bytes]


class Sender:
    """Sends requests on one connection after another, and looks at every answer."""

    def __init__(self, server: Server, numbers: Iterator[int], seed: int) -> None:
        """Take a number of `numbers` for each row."""
        self.server = server
        self.numbers = numbers
        self.chance = random.Random(seed)  # noqa: S311 - the same choices each time, no secret
        self.statuses: Counter[int] = Counter()
        self.left = 0
        """Requests whose answers nobody stayed for."""
        self.client = Client(server)

    def request(self, rows: int) -> Request:
        """Some request of so many rows; the values that must come back, and the bytes."""
        values = [float(next(self.numbers)) for _ in range(rows)]
        return values, infer(*values, model=self.chance.choice(("m", "other")), binary=self.chance.random() < 0.5)

    def slow(self) -> Request:
        """A request that fills a batch of its own, which takes long."""
        values = [SLOW] * 7 + [float(next(self.numbers))]
        return values, infer(*values)

    def ask(self, *requests: Request) -> None:
        """Send them in one piece, and read the answers in order: each is its own, or says that it is late."""
        self.client.send(b"".join(content for _, content in requests))
        for values, _ in requests:
            answer = self.client.read()
            self.statuses[answer.status] += 1
            assert answer.status == 504 or answer.values == values

    def leave(self, *requests: Request) -> None:
        """Send them, perhaps not all of the last, and be gone."""
        content = b"".join(content for _, content in requests)
        cut = self.chance.choice((0, 0, 1, 40, len(requests[-1][1]) - 10))
        self.client.send(content[: len(content) - cut])
        self.chance.choice((self.client.reset, self.client.close))()
        self.left += len(requests)
        self.client = Client(self.server)

    def some(self, most: int) -> int:
        """Send between one and `most` requests in one of the ways; how many."""
        requests = [self.request(self.chance.choice(ROWS)) for _ in range(min(self.chance.choice((1, 1, 1, 2, 3, 8)), most))]
        (self.leave if self.chance.random() < 0.1 else self.ask)(*requests)
        return len(requests)


@contextmanager
def _sender(server: Server, numbers: Iterator[int], seed: int) -> Iterator[Sender]:
    sender = Sender(server, numbers, seed)
    try:
        yield sender
    finally:
        sender.client.close()


@pytest.mark.timeout(300)
def test_ten_thousand_numbers(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    """Through batches, splits, two models, 504s, clients that leave and pipelining: each answer is its own, and in its order."""
    engine = Engine(tmp_path, slow=SLOW_SECONDS)
    engine.put("m")
    engine.put("other")
    numbers = count(1000)

    def normal(server: Server, seed: int) -> Sender:
        with _sender(server, numbers, seed) as sender:
            left = (REQUESTS - BURSTS * BURST) // THREADS
            while left:
                left -= sender.some(left)
            return sender

    def bursts(server: Server) -> Sender:
        with _sender(server, numbers, 0) as sender:
            for _ in range(BURSTS):
                sender.ask(*(sender.slow() for _ in range(BURST)))
            return sender

    with Server(tmp_path, request_timeout=TIMEOUT) as server, ThreadPoolExecutor(THREADS + 1) as pool:
        futures = [pool.submit(normal, server, seed) for seed in range(1, THREADS + 1)] + [pool.submit(bursts, server)]
        senders = [future.result() for future in futures]
        (worker,) = server.status()["workers"]
        assert worker["cold_dispatches"] == 0
        assert server.request("POST", "/v2/models/m/infer", infer(7).partition(b"\r\n\r\n")[2])[0] == 200

    statuses = sum((sender.statuses for sender in senders), Counter[int]())
    left = sum(sender.left for sender in senders)
    record_property("statuses", dict(statuses))
    record_property("left", left)
    assert statuses.total() + left == REQUESTS
    assert set(statuses) == {200, 504}
    assert statuses[200] > REQUESTS / 2
    assert left > REQUESTS / 50
    runs = [values for values in engine.runs() if SLOW not in values]
    assert len(runs) < statuses[200], "nothing was ever batched"
