"""A load generator in a process of its own: `python -m bench.load <port> <connections> <seconds>`.

The request comes on its standard input. Each connection sends the next one when its answer is there. What was found goes to
standard output as JSON.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.client import Connection

IGNORED_SECONDS = 0.3
"""At the beginning; then every connection has had its first answers."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run found; latencies in milliseconds."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def start(port: int, request: bytes, connections: int, seconds: float) -> subprocess.Popen[bytes]:
    """Start the generator; `finish` waits for what it found."""
    command = [sys.executable, "-m", "bench.load", str(port), str(connections), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - this very file
    if process.stdin is not None:
        process.stdin.write(request)
        process.stdin.close()
    return process


def finish(process: subprocess.Popen[bytes]) -> Load:
    """Wait for the end; raise `ConnectionError` if any request failed."""
    with process:
        found = process.stdout.read() if process.stdout is not None else b""
    if process.returncode:
        message = f"the load generator ended with {process.returncode}"
        raise ConnectionError(message)
    return Load(**json.loads(found))


def generate(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Send `request` on `connections` connections for `seconds`, and a moment before."""
    selector = selectors.DefaultSelector()
    sent: dict[Connection, float] = {}
    for _ in range(connections):
        connection = Connection(port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.socket.sendall(request)
        sent[connection] = time.perf_counter()
    begin = time.perf_counter() + IGNORED_SECONDS
    end = begin + seconds
    times: list[float] = []
    now = time.perf_counter()
    while now < end:
        for key, _ in selector.select():
            key.data.read()
            now = time.perf_counter()
            if begin <= now < end:
                times.append(now - sent[key.data])
            key.data.socket.sendall(request)
            sent[key.data] = now
    # Each is answered before it is closed, since a client that leaves is not what is measured.
    for connection in sent:
        connection.read()
        connection.close()
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1e3 if times else float("nan") for share in (0.5, 0.99))
    return Load(len(times), seconds, p50, p99)


if __name__ == "__main__":
    found = generate(int(sys.argv[1]), sys.stdin.buffer.read(), int(sys.argv[2]), float(sys.argv[3]))
    print(json.dumps({"requests": found.requests, "seconds": found.seconds, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms}))
