"""The bounds that a new server must keep while it bakes, and the verdict on what was counted: a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.haproxy.management import Durations


@dataclass(frozen=True, slots=True)
class Counted:
    """What a server did in a period: how long its requests took, by itself, and how many failed, by HAProxy."""

    durations: Durations
    answered: int
    failed: int

    def __sub__(self, earlier: Counted) -> Counted:
        """What it did since `earlier`. Raises `ValueError` where that is more: another server counts here, from zero."""
        if self.answered < earlier.answered:
            message = f"HAProxy's count fell from {earlier.answered} to {self.answered}: the server was started anew"
            raise ValueError(message)
        return Counted(self.durations - earlier.durations, self.answered - earlier.answered, self.failed - earlier.failed)


@dataclass(frozen=True, slots=True)
class Bounds:
    """p95 in seconds, the largest share of requests that may fail, and how many requests a verdict needs."""

    p95: float
    failed: float
    requests: int

    def broken(self, counted: Counted) -> str:
        """Which bound is broken and what came, or nothing.

        Failures are weighed against `requests` where fewer have come: one of few is no verdict, many of few are.
        """
        if counted.failed > self.failed * max(counted.answered, self.requests):
            return f"{counted.failed} of {counted.answered} requests failed, the bound is {self.failed:.2%}"
        p95, total = counted.durations.quantile(0.95), counted.durations.total
        if total >= self.requests and p95 > self.p95:
            return f"p95 is {p95 * 1000:.1f} ms over {total:g} requests, the bound is {self.p95 * 1000:.1f} ms"
        return ""

    def undecided(self, counted: Counted) -> str:
        """Why a period that is over decides nothing: too few requests; or nothing. What hangs is not counted either."""
        if counted.durations.total >= self.requests:
            return ""
        return f"{counted.durations.total:g} requests were answered, at least {self.requests} are needed to judge it"
