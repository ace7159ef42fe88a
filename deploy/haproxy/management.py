"""What a server says of itself on its management port: probes, and how long its requests took."""

from __future__ import annotations

import http.client
import json
import math
import re
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise

TIMEOUT = 2.0
"""Seconds without a byte of an answer."""

_BUCKET = re.compile(r'^warmfork_request_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Durations:
    """A Prometheus histogram: `counts[i]` requests took `bounds[i]` seconds at most; the last bound is infinite."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    def __sub__(self, earlier: Durations) -> Durations:
        """What came since `earlier`. Raises `ValueError` where that is more: another server counts here, from zero."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        if min(counts) < 0:
            message = f"the count of requests fell from {earlier.total:g} to {self.total:g}: the server was started anew"
            raise ValueError(message)
        return Durations(self.bounds, counts)

    @property
    def total(self) -> float:
        """How many requests."""
        return self.counts[-1]

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the requests took at most; inside a bucket as Prometheus' `histogram_quantile` interpolates.

        The last finite bound if it lies beyond, and 0 of no requests.
        """
        rank = share * self.total
        points = [(0.0, 0.0), *zip(self.bounds, self.counts, strict=True)]
        for (low, below), (high, count) in pairwise(points):
            if count >= rank and count > below:
                return low if math.isinf(high) else low + (high - low) * (rank - below) / (count - below)
        return 0.0


def probe(address: str, path: str) -> tuple[int, str]:
    """Status and body of a route at `host:port`; 0 and why where nobody answers."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{address} does not answer: {error}"
    finally:
        connection.close()


def durations(address: str) -> Durations | None:
    """The histogram in `/metrics`, or None where nobody answers."""
    status, text = probe(address, "/metrics")
    found = [(float(bound), float(count)) for bound, count in _BUCKET.findall(text)]
    return (
        Durations(tuple(bound for bound, _ in found), tuple(count for _, count in found))
        if status == HTTPStatus.OK and found
        else None
    )


def reasons(address: str) -> str:
    """Why the server is not ready, or how far its start is, in its own words; empty if it is ready."""
    for path in ("/startupz", "/readyz"):
        status, text = probe(address, path)
        if status != HTTPStatus.OK:
            try:
                return "; ".join(json.loads(text)["reasons"])
            except (ValueError, KeyError):
                return text
    return ""


def workers(address: str) -> list[int]:
    """The pids of the workers, on the server's machine; none where nobody answers."""
    status, text = probe(address, "/status")
    return [worker["pid"] for worker in json.loads(text)["workers"]] if status == HTTPStatus.OK else []
