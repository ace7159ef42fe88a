"""A comparison: all that is compared is measured in each of several rounds, in turn; what counts is the median of the ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Generic, TypeVar

from bench import load
from bench.load import Load
from bench.machine import pinned
from bench.report import Say

ROUNDS = 5

Found = TypeVar("Found")


class Series(Generic[Found]):
    """What one measure found, round by round."""

    def __init__(self, measure: Callable[[], Found]) -> None:
        """Call `measure` once a round."""
        self.measure = measure
        self.found: list[Found] = []


def run(series: Sequence[Series[Any]], say: Say) -> None:
    """Measure all in each round, every second round backwards."""
    for turn in range(ROUNDS):
        say(f"round {turn + 1} of {ROUNDS}")
        for each in series[:: -1 if turn % 2 else 1]:
            each.found.append(each.measure())


def load_on(
    port: int, request: bytes, connections: int, seconds: float, *, rate: float | None = None, cores: Sequence[int] = (1,)
) -> Series[Load]:
    """A measure: what a load generator on `cores` finds."""

    def measure() -> Load:
        with pinned(*cores):
            return load.finish(load.start(port, request, connections, seconds, rate))

    return Series(measure)


def rates(series: Series[Load]) -> list[float]:
    """Requests per second."""
    return [each.rate for each in series.found]


def best(called: Series[Mapping[int, float]]) -> list[float]:
    """Rows per second in process, at the batch size that is the fastest one on the whole."""
    size = max(called.found[0], key=lambda size: median(each[size] for each in called.found))
    return [each[size] for each in called.found]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One by the other in each round."""
    return [one / other for one, other in zip(over, under, strict=True)]


def noise(*controls: Sequence[float]) -> float:
    """How far what is measured twice in one round is from itself, as a rule: the median distance of `controls` from 1."""
    return median(abs(ratio - 1) for control in controls for ratio in control)
