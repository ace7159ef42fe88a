"""The connections of a worker in this process: clients on socket pairs, the loop turned by the test, a clock that it sets."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from server import counters, serving
from server.api import app, infer
from server.models.model import Model
from server.scoreboard import Scoreboard
from server.serving import Serving
from server.settings import Settings
from server.tensors import ANY, Array, Tensors, TensorSpec
from server.worker import batcher, common, connection, unusual
from server.worker.assistant import Assistants
from server.worker.batcher import Batcher
from server.worker.channel import State
from server.worker.connection import Connection
from server.worker.front import Front
from server.worker.loop import Loop
from server.worker.tasks import Tasks
from server.worker.watchdog import Watchdog
from tests.unit.fakes import model
from tests.wire import Answer, take

FAILS = 13.0
WIDE = 50_000
"""Columns of the output of the model `wide`, so that an answer is larger than a socket's buffers."""
HERE, THERE = ("127.0.0.1", 8000), ("127.0.0.1", 40_000)


def run(inputs: Tensors) -> dict[str, Array]:
    """Give back what came; fail for a row of a certain number."""
    if (inputs["x"] == FAILS).any():
        message = "as asked"
        raise ValueError(message)
    return {"y": inputs["x"]}


def models() -> list[Model]:
    """One that mixes, and one whose answers are large."""
    wide = TensorSpec("y", "FP32", (ANY, WIDE), ("n", None))
    return [
        model(run, batch_sizes=[1, 2, 4]),
        model(lambda inputs: {"y": inputs["x"].repeat(WIDE // 3 + 1, 1)[:, :WIDE]}, outputs=(wide,), name="wide", index=1),
    ]


class Clock:
    """Stands in for `time` in the modules of the worker: what the clock says, and what a test has added."""

    def __init__(self) -> None:
        """Begin with the real time."""
        self.added = 0.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return time.monotonic() + self.added

    def monotonic_ns(self) -> int:
        """As `time.monotonic_ns`."""
        return time.monotonic_ns() + int(self.added * 1e9)

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        return time.time_ns()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Be what the worker sees."""
        for module in (common, connection, unusual, batcher, serving, counters, infer):
            patch.setattr(module, "time", self)


class Hesitant(Batcher):
    """A batcher that a test may hold back, as a batch that takes its time would."""

    held = False

    def turn(self) -> None:
        """Run a batch, unless held."""
        if not self.held:
            super().turn()


class Office(Worker):
    """What connections see of gunicorn's worker."""

    def __init__(self, cfg: Config, wsgi: Any) -> None:
        """Not gunicorn's: there is no master, and no file of a heartbeat."""
        self.cfg = cfg
        self.log = Logger(cfg)
        self.wsgi = wsgi
        self.requests = 0

    def count_request(self) -> None:
        """Count it."""
        self.requests += 1


@dataclass
class Desk:
    """A front, its loop and its clock."""

    settings: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    models: list[Model] = field(default_factory=models)
    wsgi: Any = None
    """Another app than the server's."""

    def __post_init__(self) -> None:
        """Put it together as the worker class does."""
        self.clients: list[Client] = []
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.clock.install(self.patch)
        logger = logging.getLogger("gunicorn.error")
        self.logged = logger.level, logger.propagate, logger.handlers[:]
        cfg = Config()
        for name, value in {"keepalive": 75, "http_parser": "python", **self.config}.items():
            cfg.set(name, value)
        read = Settings.read({f"WARMFORK_{name}": text for name, text in self.settings.items()})
        served = self.serving = Serving(self.models, Scoreboard.create(2), 0, read)
        self.loop, self.tasks = Loop(), Tasks()
        self.batcher = Hesitant(self.tasks, Watchdog(lambda: None), Assistants(self.loop), self.serving.steady_ms)
        self.batcher.limit(read.max_queue, read.request_timeout)
        self.serving.line = self.batcher
        self.office = Office(cfg, self.wsgi or app.create(lambda: served))
        self.front = Front(self.office, self.loop, self.tasks, self.batcher, self.serving)
        logger.propagate, logger.handlers[:] = True, []

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Close what is open, and find that nothing is left of it; a test that has failed already says why by itself."""
        try:
            if kind is None:
                self.close()
        finally:
            self.end()

    def end(self) -> None:
        """Leave time and logging as they were, and let go of all descriptors at once."""
        access = logging.getLogger("gunicorn.access")
        for handler in access.handlers[:]:
            access.removeHandler(handler)
            handler.close()
        del self.serving.line
        self.loop.epoll.close()
        for client in self.clients:
            client.sock.close()
        self.patch.undo()
        logger = logging.getLogger("gunicorn.error")
        logger.setLevel(self.logged[0])
        logger.propagate, logger.handlers[:] = self.logged[1:]

    def open(self) -> Client:
        """A connection."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self.clients.append(Client(ours, self.front.open(theirs, THERE, HERE)))
        return self.clients[-1]

    def turn(self, times: int = 1) -> None:
        """Turn the loop without waiting."""
        for _ in range(times):
            self.front.turn(0)

    def wait(self, seconds: float) -> None:
        """Let time pass, as the loop sees it."""
        self.clock.added += seconds
        self.front.tick()
        self.turn()

    def settle(self, clients: Iterable[Client] = ()) -> None:
        """Turn until nothing happens any more, the clients sending and reading all they can."""
        quiet = 0
        while quiet < 3:
            before = [(client.sent, len(client.came)) for client in clients], self.batcher.waiting, self.office.requests
            for client in clients:
                client.push()
            self.turn(2)
            for client in clients:
                client.read()
            after = [(client.sent, len(client.came)) for client in clients], self.batcher.waiting, self.office.requests
            quiet = quiet + 1 if before == after else 0

    def close(self) -> None:
        """Close what is open, and find that nothing is left of it."""
        self.batcher.held = False
        for each in list(self.front.connections.values()):
            each.lose()
        self.settle()
        self.clean()

    def clean(self) -> None:
        """Nothing is held, nobody waits, no greenlet is lost, and no connection is known."""
        assert {} == self.front.connections
        assert 0 == self.front.held
        assert 0 == self.batcher.waiting
        assert self.tasks.count == len(self.tasks.idle)
        assert {} == self.loop.handlers

    def check(self) -> None:
        """What holds at any time between two turns."""
        each: Connection
        assert self.front.held == sum(each.reserved for each in self.front.connections.values()) >= 0
        for descriptor, each in self.front.connections.items():
            assert descriptor == each.sock.fileno()
            assert each.state is not State.CLOSED
            assert (each.state is State.BODY) == (each.arriving is not None)
            if each.state is State.BUSY:
                assert each.task or (each.done and each.out.size), "nobody answers"
            else:
                assert each.task is None
            if each.state is State.LINGER:
                assert not each.out.size
            if each.done:
                assert each.out.size


@dataclass(eq=False)
class Client:
    """The other end of a connection; sends and reads what it is told to, and never waits."""

    sock: socket.socket
    connection: Connection
    pending: bytes = b""
    """What it wants to send."""
    sent: int = 0
    came: bytes = b""
    ended: bool = False
    """Whether the server has closed."""

    def push(self, most: int = 1 << 30) -> None:
        """Send what the socket takes of the next `most` bytes."""
        with suppress(BlockingIOError):
            while most > 0 and self.pending:
                try:
                    count = self.sock.send(self.pending[: min(most, 1 << 16)])
                except (BrokenPipeError, ConnectionResetError):
                    self.pending = b""
                    return
                self.pending = self.pending[count:]
                self.sent += count
                most -= count

    def send(self, data: bytes) -> None:
        """Want to send `data`, and do."""
        self.pending += data
        self.push()

    def read(self) -> None:
        """Read what has come."""
        with suppress(BlockingIOError):
            while not self.ended:
                try:
                    data = self.sock.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                self.came += data
                self.ended = not data

    def answers(self, heads: Iterable[int] = ()) -> list[Answer]:
        """All answers but interim ones; those of the numbers `heads` have no body if they are 200."""
        found: list[Answer] = []
        stream, bodiless = self.came, set(heads)
        while stream:
            ok = stream.startswith(b"HTTP/1.1 200")
            one = take(stream, bodiless=ok and len(found) in bodiless)
            if one is None:
                break
            stream = stream[one[1] :]
            if not one[0].interim:
                found.append(one[0])
        return found


def post(value: float, name: str = "m", *fields: str) -> bytes:
    """An inference as JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [value] * 3}
    body = json.dumps({"id": str(value), "inputs": [tensor]}).encode()
    head = [f"POST /v2/models/{name}/infer HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


def binary(value: float, name: str = "m", rows: int = 1) -> bytes:
    """An inference as nothing but the bytes of its one tensor."""
    body = np.full((rows, 3), value, np.float32).tobytes()
    head = [f"POST /v2/models/{name}/infer HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "Inference-Header-Content-Length: 0", "", ""]).encode() + body


def chunked(value: float) -> bytes:
    """An inference in chunks."""
    head, _, body = post(value).partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    pieces = (body[:10], body[10:])
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: a", *fields, "", ""]).encode()
