"""A load generator in a process of its own: `python -m bench.load <port> <connections> <seconds> [<requests per second>]`.

The request comes on its standard input. Without a rate each connection sends the next one when its answer is there. What was
found goes to standard output as JSON. Only the standard library is imported: it starts in a moment, many times.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression

from bench import loops


@dataclass(frozen=True, slots=True)
class Load:
    """What one run found; latencies in milliseconds."""

    requests: int
    rate: float
    """Requests per second."""
    p50_ms: float
    p99_ms: float
    late_ms: float
    """The 99th percentile of how late the generator was to send, where times were fixed beforehand."""
    busy: float
    """The share of its core that the generator used: near 1 it is the generator that was measured."""
    reopened: int
    """Connections that the server asked to have anew."""


def start(port: int, request: bytes, connections: int, seconds: float, rate: float | None = None) -> subprocess.Popen[bytes]:
    """Start the generator; `finish` waits for what it found."""
    command = [sys.executable, "-m", "bench.load", *map(str, (port, connections, seconds)), *([str(rate)] if rate else [])]
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


def _percentile_ms(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[int(len(ordered) * share)] * 1e3 if ordered else 0.0


def _rate(moments: Sequence[float]) -> float:
    """How the count of answers rises with time, a line through all: which batch just fell into the period has no say in it."""
    return linear_regression(moments, range(len(moments))).slope


def _main(port: str, connections: str, seconds: str, rate: str = "") -> None:
    gc.disable()  # its pauses would be taken for the server's
    asked = (int(port), sys.stdin.buffer.read(), int(connections), float(seconds))
    record = loops.opened(*asked, float(rate)) if rate else loops.closed(*asked)
    if len(set(record.moments)) < 2:  # noqa: PLR2004 - what a line goes through
        sys.exit(f"too few answers in {seconds} s: {len(record.moments)}")
    p50, p99 = (_percentile_ms(record.latencies, share) for share in (0.5, 0.99))
    late = _percentile_ms(record.late, 0.99)
    found = Load(len(record.latencies), _rate(record.moments), p50, p99, late, record.busy, record.reopened)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
