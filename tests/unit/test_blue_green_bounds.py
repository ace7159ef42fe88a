"""What a shift between two servers reads from a histogram, and its verdict."""

from __future__ import annotations

import math

import pytest

from deploy.haproxy.bounds import Bounds, Counted
from deploy.haproxy.management import Durations

BOUNDS = Bounds(p95=0.1, failed=0.01, requests=100)


def _took(fast: int, slow: int, forever: int = 0) -> Durations:
    """Requests of up to 0.1 s, up to 1 s, and longer."""
    return Durations((0.1, 1.0, math.inf), (fast, fast + slow, fast + slow + forever))


@pytest.mark.parametrize(
    ("durations", "p95"),
    [
        (_took(0, 0), 0.0),
        (_took(100, 0), 0.095),
        (_took(95, 5), 0.1),
        (_took(0, 100), 0.1 + 0.9 * 0.95),
        (_took(0, 0, 100), 1.0),
        (_took(200, 100) - _took(100, 100), 0.095),
    ],
)
def test_quantile(durations: Durations, p95: float) -> None:
    """Interpolated in its bucket; beyond the last finite bound it is that bound."""
    assert p95 == pytest.approx(durations.quantile(0.95))


def test_counts_that_fall() -> None:
    """A server that was started anew is not taken for the one before."""
    with pytest.raises(ValueError, match="fell from 100 to 99"):
        _ = _took(99, 0) - _took(100, 0)
    with pytest.raises(ValueError, match="HAProxy's count fell from 100 to 99"):
        _ = Counted(_took(100, 0), 99, 0) - Counted(_took(100, 0), 100, 0)


@pytest.mark.parametrize(
    ("durations", "answered", "failed", "broken"),
    [
        (_took(95, 5), 100, 1, ""),
        (_took(94, 6), 100, 0, "p95 is 250.0 ms over 100 requests, the bound is 100.0 ms"),
        (_took(0, 99), 99, 0, ""),
        (_took(3, 0), 3, 1, ""),
        (_took(3, 0), 3, 2, "2 of 3 requests failed, the bound is 1.00%"),
        (_took(1000, 0), 1000, 11, "11 of 1000 requests failed, the bound is 1.00%"),
    ],
)
def test_verdict(durations: Durations, answered: int, failed: int, broken: str) -> None:
    """p95 of few requests is no verdict, nor is the first failure of few; many failures of few are."""
    assert broken == BOUNDS.broken(Counted(durations, answered, failed))


def test_undecided() -> None:
    """A period of too few requests decides nothing."""
    assert BOUNDS.undecided(Counted(_took(100, 0), 100, 0)) == ""
    assert BOUNDS.undecided(Counted(_took(99, 0), 99, 0)) == "99 requests were answered, at least 100 are needed to judge it"
