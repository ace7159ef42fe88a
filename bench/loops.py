"""How a load generator sends: each connection when its answer is there, or all at times that were fixed beforehand."""

from __future__ import annotations

import random
import select
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.wire import Wire

IGNORED_SECONDS = 0.2
"""At the beginning; then every connection has had its first answers."""
PATIENCE_SECONDS = 60.0
"""Without any answer, after which a run has failed."""
SEED = 1


@dataclass(slots=True)
class Record:
    """What one run found, in seconds."""

    moments: list[float] = field(default_factory=list)
    """When answers came."""
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """How much later than it meant to the generator was there to send."""
    busy: float = 0.0
    """The share of its core that the generator used."""
    reopened: int = 0


class _Wires:
    """Connections that are all watched at once."""

    def __init__(self, port: int, connections: int) -> None:
        self.poll = select.epoll()
        self.by_descriptor: dict[int, Wire] = {}
        self.all = [Wire(port, self.poll, self.by_descriptor) for _ in range(connections)]

    def ready(self, patience: float = 0) -> Iterator[Wire]:
        """Send and read what goes, once something does, for which to wait `patience`; give those whose answer is complete."""
        for descriptor, event in self.poll.poll(patience):
            wire = self.by_descriptor[descriptor]
            if event & select.EPOLLOUT:
                wire.flush()
            if event & ~select.EPOLLOUT and wire.receive():
                yield wire

    def answered(self) -> Iterator[Wire]:
        """Wait for answers and give those that have one; raises `TimeoutError` if none comes."""
        end = time.perf_counter() + PATIENCE_SECONDS
        any_came = False
        while not any_came:
            for wire in self.ready(PATIENCE_SECONDS):
                any_came = True
                yield wire
            if not any_came and time.perf_counter() > end:
                message = f"no answer in {PATIENCE_SECONDS:g} s"
                raise TimeoutError(message)


@contextmanager
def _connected(port: int, connections: int, record: Record) -> Iterator[_Wires]:
    wires = _Wires(port, connections)
    try:
        yield wires
        record.reopened = sum(wire.reopened for wire in wires.all)
    finally:
        for wire in wires.all:
            wire.close()
        wires.poll.close()


def closed(port: int, request: bytes, connections: int, seconds: float) -> Record:
    """Send `request` on `connections` connections for `seconds`, and a moment before; each when its last answer is there."""
    record = Record()
    with _connected(port, connections, record) as wires:
        sent: dict[Wire, float] = {}
        for wire in wires.all:
            sent[wire] = time.perf_counter()
            wire.send(request)
        _exchange(wires, sent, request, time.perf_counter() + IGNORED_SECONDS, Record())
        used, now = time.process_time(), time.perf_counter()
        _exchange(wires, sent, request, now + seconds, record)
        record.busy = (time.process_time() - used) / (time.perf_counter() - now)
        # Each is answered before it is closed, since a client that leaves is not what is measured.
        while sent:
            for wire in wires.answered():
                del sent[wire]
    return record


def _exchange(wires: _Wires, sent: dict[Wire, float], request: bytes, end: float, record: Record) -> None:
    """Go on until `end` with the requests that were `sent` at these times."""
    now = 0.0
    while now < end:
        for wire in wires.answered():
            now = time.perf_counter()
            record.moments.append(now)
            record.latencies.append(now - sent[wire])
            wire.send(request)
            sent[wire] = now


def arrivals(rate: float, seconds: float) -> list[float]:
    """When requests of many independent clients come, in seconds from the beginning: the same ones every time."""
    generator = random.Random(SEED)  # noqa: S311 - a schedule is no secret
    times = [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + generator.expovariate(rate))
    return times[:-1]


def opened(port: int, request: bytes, connections: int, seconds: float, rate: float) -> Record:
    """Send at `arrivals`, whatever the server does; latency counts from the time that was meant.

    One that finds no connection free waits for one, in order. The generator never sleeps, since a sleeper is late.
    """
    record = Record(busy=1.0)
    with _connected(port, connections, record) as wires:
        begin = time.perf_counter()
        counted = begin + IGNORED_SECONDS
        planned = deque(begin + after for after in arrivals(rate, IGNORED_SECONDS + seconds))
        end = planned[-1] + PATIENCE_SECONDS
        waiting: deque[float] = deque()
        idle = list(wires.all)
        meant: dict[Wire, float] = {}
        while planned or waiting or meant:
            now = time.perf_counter()
            while planned and planned[0] <= now:
                if planned[0] >= counted:
                    record.late.append(now - planned[0])
                waiting.append(planned.popleft())
            while waiting and idle:
                wire = idle.pop()
                meant[wire] = waiting.popleft()
                wire.send(request)
            for wire in wires.ready():
                came, due = time.perf_counter(), meant.pop(wire)
                if due >= counted:
                    record.moments.append(came)
                    record.latencies.append(came - due)
                idle.append(wire)
            if now > end:
                message = f"{len(meant)} requests without an answer in {PATIENCE_SECONDS:g} s"
                raise TimeoutError(message)
    return record
