"""A client that costs little, the first time as the next: requests made beforehand, a kept connection."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from tests.server import Server

PATIENCE = 120.0
NUMBERS = {np.dtype(np.float32): "FP32", np.dtype(np.uint8): "UINT8"}


def get(path: str) -> bytes:
    """The bytes of a request for `path`."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def infer(model: str, inputs: Mapping[str, npt.NDArray[Any]], *, binary: bool = True) -> bytes:
    """The bytes of an inference request; inputs, floats, pixels or texts, and outputs are binary tensors or JSON.

    In JSON a float is written as the shortest number that is read as the same FP32.
    """
    tensors: list[dict[str, Any]] = []
    tail = b""
    for name, array in inputs.items():
        datatype, raw = _raw(array)
        content = {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": _shortest(array)}
        tensors.append({"name": name, "datatype": datatype, "shape": list(array.shape), **content})
        tail += raw if binary else b""
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": binary}})
    kind = "application/octet-stream" if binary else "application/json"
    length = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
    fields = f"Host: bench\r\nContent-Type: {kind}\r\n{length}Content-Length: {len(head) + len(tail)}\r\n\r\n"
    return f"POST /v2/models/{model}/infer HTTP/1.1\r\n{fields}".encode() + head + tail


def _shortest(array: npt.NDArray[Any]) -> list[Any]:
    return [float(str(item)) if isinstance(item, np.floating) else item for item in array.ravel()]


def _raw(array: npt.NDArray[Any]) -> tuple[str, bytes]:
    """The datatype of an array and its items as the protocol has them."""
    if array.dtype in NUMBERS:
        return NUMBERS[array.dtype], array.tobytes()
    texts = [text.encode() for text in array.ravel()]
    return "BYTES", b"".join(len(text).to_bytes(4, "little") + text for text in texts)


class Connection:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        """Connect; the server accepts when it likes."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        """Close at the end."""
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close."""
        self.socket.close()

    def exchange(self, request: bytes) -> float:
        """Send one request and read its answer; the seconds it took. Raises `ConnectionError` for any answer but 200."""
        start = time.perf_counter()
        self.socket.sendall(request)
        self.read()
        return time.perf_counter() - start

    def read(self) -> bytes:
        """The body of the next answer; raises `ConnectionError` if its status is not 200."""
        received = b""
        while b"\r\n\r\n" not in received:
            if not (piece := self.socket.recv(1 << 18)):
                message = f"closed after {received[:64]!r}"
                raise ConnectionError(message)
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        parts, missing = [body], length - len(body)
        while missing > 0:
            parts.append(self.socket.recv(1 << 18))
            if not parts[-1]:
                message = f"closed with {missing} bytes missing"
                raise ConnectionError(message)
            missing -= len(parts[-1])
        body = b"".join(parts)
        if b" 200 " not in head[:16]:
            message = f"answered {head[:64]!r} {body[:300]!r}"
            raise ConnectionError(message)
        return body

    def owner(self, workers: frozenset[int]) -> int:
        """The pid among `workers` that has accepted this connection; waits until one has."""
        port = self.socket.getsockname()[1]
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for pid in workers:
                if any(each.raddr[1:] == (port,) for each in psutil.Process(pid).net_connections("tcp4")):
                    return pid
        message = f"no worker accepted a connection in {PATIENCE:g} s"
        raise TimeoutError(message)


@contextmanager
def one_each(server: Server) -> Iterator[list[Connection]]:
    """A connection to each active worker, on which nothing has been sent; no others. Raises `TimeoutError` if one takes none."""
    workers = frozenset(pid for pid, title in server.processes().items() if "· active ·" in title)
    found: dict[int, Connection] = {}
    with ExitStack() as opened:
        with ExitStack() as held:
            while len(found) < len(workers):
                connection = opened.enter_context(Connection(server.port))
                pid = connection.owner(workers - found.keys())
                found[pid] = connection
                # Of idle workers it is the same few that accept: whoever has one waits until all have.
                os.kill(pid, signal.SIGSTOP)
                held.callback(os.kill, pid, signal.SIGCONT)
        yield list(found.values())
