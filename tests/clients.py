"""Clients on raw sockets: requests in pieces or in a row, answers by their length, arrivals at times fixed beforehand."""

from __future__ import annotations

import json
import re
import select
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from tests.server import PATIENCE, Server

STEP = 1 << 18
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Answer(NamedTuple):
    """One answer; the head as it came, from the status line to the empty line."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        found = re.search(rb"\r\n" + re.escape(name.encode()) + rb": *([^\r]*)\r\n", self.head, re.IGNORECASE)
        return found[1].decode() if found else None

    @property
    def closes(self) -> bool:
        """Whether the server says that nothing follows on this connection."""
        return (self.header("Connection") or "").lower() == "close"

    @property
    def error(self) -> str:
        """The sentence of a refusal."""
        sentence: str = json.loads(self.body)["error"]
        return sentence

    @property
    def values(self) -> list[float]:
        """The first output of an inference, JSON or binary FP64, flat; raises `AssertionError` for any status but 200."""
        assert self.status == 200, (self.head, self.body)
        length = self.header("Inference-Header-Content-Length")
        if length is not None:
            return [float(value) for value in np.frombuffer(self.body[int(length) :], np.float64)]
        data: list[float] = json.loads(self.body)["outputs"][0]["data"]
        return data


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    """The bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *fields, "", ""]).encode()


def head(model: str, length: int, *fields: str) -> bytes:
    """The head of an inference request with a body of `length` bytes."""
    return get(f"/v2/models/{model}/infer", f"Content-Length: {length}", *fields, method="POST")


def body(values: Sequence[float], datatype: str = "FP64", width: int = 1) -> bytes:
    """The JSON of an inference with one input `x`, flat `values` in rows of `width`."""
    tensor = {"name": "x", "datatype": datatype, "shape": [len(values) // width, width], "data": list(values)}
    return json.dumps({"inputs": [tensor]}).encode()


def infer(*values: float, model: str = "m", binary: bool = False) -> bytes:
    """The bytes of an inference request with one input `x`, FP64 [rows, 1]."""
    if not binary:
        content = body(values)
        return head(model, len(content)) + content
    content = np.array(values, np.float64).tobytes()
    return head(model, len(content), "Inference-Header-Content-Length: 0") + content


def padded(value: float, size: int, model: str = "m") -> bytes:
    """The bytes of an inference of one row, whose body has `size` bytes."""
    return head(model, size) + body([value]).ljust(size)


class Client:
    """One connection."""

    def __init__(self, server: Server, timeout: float = PATIENCE) -> None:
        """Connect; `timeout` seconds without a byte are a failure."""
        self.socket = socket.create_connection((server.host, server.port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        """What has come and belongs to no answer yet."""

    def __enter__(self) -> Self:
        """Close at the end."""
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close."""
        self.socket.close()

    def reset(self) -> None:
        """Close so that the server hears that nobody reads any more; a plain close may mean no more than that nothing is sent."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, *pieces: bytes) -> Self:
        """Send pieces, each in a segment of its own."""
        for piece in pieces:
            self.socket.sendall(piece)
        return self

    def ask(self, request: bytes) -> Answer:
        """Send one request and read its answer."""
        return self.send(request).read()

    def read(self, *, bodiless: bool = False) -> Answer:
        """The next answer, `bodiless` if it is one to HEAD. Raises `ConnectionError` if the connection ends before."""
        while (answer := self.next(bodiless=bodiless)) is None:
            self.receive()
        return answer

    def next(self, *, bodiless: bool = False) -> Answer | None:
        """The next answer if all of it has been received."""
        end = self.received.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        found = None if bodiless else _LENGTH.search(self.received, 0, end)
        last = end + (int(found[1]) if found else 0)
        if len(self.received) < last:
            return None
        answer = Answer(int(self.received[9:12]), self.received[:end], self.received[end:last])
        self.received = self.received[last:]
        return answer

    def receive(self) -> None:
        """Wait for more bytes. Raises `ConnectionError` if the connection ends."""
        came = self.socket.recv(STEP)
        if not came:
            message = f"the server closed the connection after {self.received!r}"
            raise ConnectionError(message)
        self.received += came

    def quiet(self) -> bool:
        """Whether the connection is open and nothing has come on it."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not self.received and not poll.poll(0)

    def ends(self) -> bool:
        """Wait for the server to close the connection in order, without a byte more; False after anything else."""
        with suppress(OSError):
            return not self.received and self.socket.recv(1) == b""
        return False


@contextmanager
def connected(server: Server, count: int) -> Iterator[list[Client]]:
    """Connections that the server has accepted: each has had an answer."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(count)]
        for client in clients:
            assert client.ask(get("/v2/health/live")).status == 200
        yield clients


class Arrival(NamedTuple):
    """What became of one request of an open loop; times of the monotonic clock."""

    due: float
    answered: float
    answer: Answer


def arrivals(server: Server, requests: Sequence[bytes], rate: float) -> list[Arrival]:
    """Send `requests` at `rate` per second whether or not those before are answered, each on a free connection or on a new one.

    In the order of the answers. Raises `ConnectionError` if a connection ends without one.
    """
    began, sent = time.monotonic(), 0
    found: list[Arrival] = []
    free: list[Client] = []
    busy: dict[Client, float] = {}
    with selectors.DefaultSelector() as selector:
        while len(found) < len(requests):
            now = time.monotonic()
            while sent < len(requests) and (due := began + sent / rate) <= now:
                client = free.pop() if free else Client(server)
                if client not in busy and client.socket not in selector.get_map():
                    selector.register(client.socket, selectors.EVENT_READ, client)
                client.send(requests[sent])
                busy[client] = due
                sent += 1
            wait = max(began + sent / rate - time.monotonic(), 0) if sent < len(requests) else PATIENCE
            for key, _ in selector.select(wait):
                client = key.data
                if client not in busy:  # free, and closed by the server
                    selector.unregister(client.socket)
                    free.remove(client)
                    client.close()
                    continue
                client.receive()
                answer = client.next()
                if answer is None:
                    continue
                found.append(Arrival(busy.pop(client), time.monotonic(), answer))
                if answer.closes:
                    selector.unregister(client.socket)
                    client.close()
                else:
                    free.append(client)
            assert now < began + len(requests) / rate + PATIENCE, f"{len(requests) - len(found)} requests are not answered"
    for client in free:
        client.close()
    return found
