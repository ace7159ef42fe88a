"""Slow and broken clients beside good ones, whose requests must not notice.

`locust -f workloads/hostile.py --headless -H http://127.0.0.1:8000`
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from bench.report import Figure
from workloads.run import Run
from workloads.workload import Workload, users

EVENT = "attack"
EACH = 4
"""Clients of each kind."""
PAUSE = 0.2
"""Seconds between two attacks of one client."""
_HELD = 2.0
"""Seconds for which a slow client holds its connection."""


class Attackers:
    """Bad clients, each on connections of its own, from `start` to `stop`; `answers` counts the statuses they saw, by kind."""

    def __init__(self, run: Run) -> None:
        """Attack the server of `run`."""
        self.run = run
        self.answers: dict[str, Counter[str]] = {kind: Counter() for kind in ATTACKS}

    def during(self, seconds: float) -> None:
        """Attack for so long, and wait for the attackers to leave."""
        end = self.run.now + seconds
        threads = [threading.Thread(target=self._attack, args=(kind, end)) for kind in ATTACKS for _ in range(EACH)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _attack(self, kind: str, end: float) -> None:
        while self.run.now < end:
            try:
                with socket.create_connection(
                    (self.run.host, self.run.port), timeout=min(_HELD, max(end - self.run.now, 0.01))
                ) as to:
                    ATTACKS[kind](to, self.run.traffic.request)
                    self.answers[kind][to.recv(64)[9:12].decode("ascii", "replace")] += 1
            except OSError as error:
                self.answers[kind][type(error).__name__] += 1
            time.sleep(PAUSE)


def _half_head(to: socket.socket, request: bytes) -> None:
    to.sendall(request[:20])


def _half_body(to: socket.socket, request: bytes) -> None:
    to.sendall(request[: -len(request) // 3])


def _reset(to: socket.socket, request: bytes) -> None:
    to.sendall(request)
    to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.close()


def _garbage(to: socket.socket, _: bytes) -> None:
    to.sendall(os.urandom(4096) + b"\r\n\r\n")


def _long_head(to: socket.socket, _: bytes) -> None:
    to.sendall(b"GET /v2 HTTP/1.1\r\nHost: load\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")


def _large_body(to: socket.socket, request: bytes) -> None:
    first = request.partition(b"\r\n")[0]
    to.sendall(first + b"\r\nHost: load\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 10_000)


def _truncated(to: socket.socket, request: bytes) -> None:
    to.sendall(request[:-5])
    to.shutdown(socket.SHUT_WR)


ATTACKS: Mapping[str, Callable[[socket.socket, bytes], None]] = {
    "half a head": _half_head,
    "half a body": _half_body,
    "reset": _reset,
    "garbage": _garbage,
    "long head": _long_head,
    "large body": _large_body,
    "truncated body": _truncated,
}


def _act(run: Run) -> None:
    attackers = Attackers(run)
    run.begin()
    run.pairs(EVENT, lambda: attackers.during(run.options.window))
    run.details["attacks"] = attackers.answers


def _judge(run: Run) -> list[Figure]:
    attacks = run.details["attacks"].values()
    return [
        run.failed(),
        run.first(run.bound("first")),
        run.compare("p95 of good clients, attacked ÷ not", EVENT, 0.95, run.bound("p95")),
        run.compare("p99 of good clients, attacked ÷ not", EVENT, 0.99, None),
        Figure("attacks", sum(kind.total() for kind in attacks)),
        Figure("attacks of the rarest kind", min(kind.total() for kind in attacks), least=1),
    ]


Users = users(Workload("hostile", _act, _judge, {"first": 2.0, "p95": 1.1}))
