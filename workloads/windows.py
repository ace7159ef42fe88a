"""How a bound is measured on a noisy machine: windows with the event and windows without, of equal length, in turn.

The median ratio of a window with the event to the one without it beside it must be within the larger of the bound and the noise:
what windows without the event show against each other. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from bench.report import Figure

LEAST = 5
"""Windows with the event, and as many without."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was meant, when it was sent, when it was over; seconds of one clock."""

    due: float
    sent: float
    came: float
    late: float
    """How much later than it meant to the generator was there to send, while a connection was free."""
    error: str
    """Why it failed; empty if it was answered with 200."""
    port: int
    """The client's, by which its connection is known."""

    @property
    def latency(self) -> float:
        """Counted from when it was meant, so that a server that stands still cannot hide."""
        return self.came - self.due


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time, with the event or without."""

    begin: float
    end: float
    event: str
    """Its name; empty without one."""

    def of(self, answers: Iterable[Answer]) -> list[Answer]:
        """Those that were meant to be sent in it."""
        return [answer for answer in answers if self.begin <= answer.due < self.end]


def percentile_ms(answers: Iterable[Answer], share: float) -> float:
    """The latency in ms that `share` of the answers do not exceed, by nearest rank; 1 is the slowest. NaN without any."""
    ordered = sorted(answer.latency for answer in answers)
    return ordered[max(math.ceil(len(ordered) * share), 1) - 1] * 1e3 if ordered else math.nan


def slowest_ms(answers: Iterable[Answer], few: int) -> float:
    """The latency in ms of the slowest of the `few` that were meant to be sent first. NaN without any."""
    return percentile_ms(sorted(answers, key=lambda answer: answer.due)[:few], 1)


def noise(without: Sequence[float]) -> float:
    """How far windows without the event are apart, as a rule: the median of the larger by the smaller of each two."""
    return median(max(pair) / min(pair) for pair in combinations(without, 2))


def compare(name: str, event: Sequence[float], without: Sequence[float], bound: float | None) -> Figure:
    """The median ratio of neighbours, which may be `bound` or the noise, whichever is more; the control is the noise.

    Raises `ValueError` for less than `LEAST` windows of each kind.
    """
    if min(len(event), len(without)) < LEAST:
        message = f"{name}: {len(event)} windows with the event and {len(without)} without, not {LEAST} of each at least"
        raise ValueError(message)
    ratios = [one / other for one, other in zip(event, without, strict=True)]
    ratio = median(math.inf if math.isnan(each) else each for each in ratios)  # nothing was answered, which no median tells
    return _figure(name, ratio, bound, noise(without))


def stands_out(name: str, one: float, others: Sequence[float], bound: float) -> Figure:
    """What is measured once, by the median of `others`; it may be `bound`, or as far out as the largest of them is.

    Raises `ValueError` for less than `LEAST` others.
    """
    if len(others) < LEAST:
        message = f"{name}: {len(others)} others, not {LEAST} at least"
        raise ValueError(message)
    return _figure(name, one / median(others), bound, max(others) / median(others))


def _figure(name: str, ratio: float, bound: float | None, apart: float) -> Figure:
    if bound is None:
        return Figure(name, ratio, "×", control=apart)
    # A window in which nothing was answered is no number, and excuses nothing.
    limit = max(bound, apart) if math.isfinite(apart) else bound
    return Figure(f"{name}, {bound:g} or the noise", ratio, "×", limit, apart)
