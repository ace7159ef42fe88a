"""How a bound is measured under load: it fails when it should, and noise excuses no more than what it shows."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from workloads.windows import Answer, Window, compare, noise, percentile_ms, slowest_ms, stands_out

QUIET = [10.0, 11.0, 10.0, 9.0, 10.0]


def _answers(*latencies: float) -> list[Answer]:
    return [Answer(due, due, due + latency, 0.0, "", 1) for due, latency in enumerate(latencies)]


@pytest.mark.parametrize(
    ("event", "without", "broken"),
    [
        (QUIET, QUIET, False),
        ([11.9, 13.1, 11.9, 10.7, 11.9], QUIET, False),  # each 1.19 times
        ([12.2, 13.5, 12.2, 11.0, 12.2], QUIET, True),  # each 1.22 times
        ([99.0, 99.0, 10.0, 9.0, 10.0], QUIET, False),  # two of five are no rule
        ([99.0, 99.0, 99.0, 9.0, 10.0], QUIET, True),  # three are
        ([15.0, 30.0, 15.0, 30.0, 15.0], [10.0, 20.0, 10.0, 20.0, 10.0], False),  # 1.5 times, where windows differ by 2
        ([25.0, 50.0, 25.0, 50.0, 25.0], [10.0, 20.0, 10.0, 20.0, 10.0], True),  # 2.5 times
        ([30.0] * 5, [10.0, 10.0, 10.0, 10.0, 40.0], True),  # one bad window without is no rule either
        ([nan] * 5, QUIET, True),  # in which nothing was answered
        (QUIET, [nan] * 5, True),
        ([inf] * 5, QUIET, True),
        ([nan, nan, 10.0, nan, 10.0], QUIET, True),  # in three of five
    ],
)
def test_compare(event: list[float], without: list[float], broken: bool) -> None:  # noqa: FBT001 - a column of the table
    """What counts is the median ratio; its limit is the bound, or what windows without the event show against each other."""
    figure = compare("p99", event, without, 1.2)

    assert broken == figure.broken


def test_compare_says() -> None:
    """The figure has both: the limit and the noise."""
    figure = compare("p99", [30.0] * 5, [10.0, 20.0, 10.0, 20.0, 10.0], 1.2)

    assert (figure.value, figure.bound, figure.control) == (3.0, 2.0, 2.0)
    assert figure.name == "p99, 1.2 or the noise"
    assert compare("p99", QUIET, QUIET, None).bound is None


@pytest.mark.parametrize("count", [0, 4])
def test_too_few(count: int) -> None:
    """Less than five windows of each kind prove nothing."""
    with pytest.raises(ValueError, match="not 5"):
        compare("p99", [1.0] * count, [1.0] * count, 1.2)
    with pytest.raises(ValueError, match="not 5"):
        stands_out("p99", 1.0, [1.0] * count, 1.2)


@pytest.mark.parametrize(("one", "others", "broken"), [(19.0, QUIET, False), (21.0, QUIET, True), (39.0, [*QUIET, 40.0], False)])
def test_stands_out(one: float, others: list[float], broken: bool) -> None:  # noqa: FBT001 - a column of the table
    """What is measured once may be as far out as the others are at most, or the bound."""
    assert broken == stands_out("first", one, others, 2.0).broken


def test_noise() -> None:
    """The median over each two windows, the larger by the smaller."""
    assert noise([10.0, 10.0, 10.0]) == 1
    assert noise([10.0, 20.0]) == 2


def test_percentiles() -> None:
    """By nearest rank, from the intended start; of nothing there is none."""
    answers = _answers(*(number / 1000 for number in range(1, 101)))

    assert [percentile_ms(answers, share) for share in (0.5, 0.95, 0.99, 1)] == pytest.approx([50, 95, 99, 100])
    assert isnan(percentile_ms([], 0.5))
    late = Answer(due=1.0, sent=5.0, came=5.5, late=0.0, error="", port=1)
    assert percentile_ms([late], 0.5) == pytest.approx(4500)


def test_slowest_of_the_first() -> None:
    """Only those count that were meant to be sent first, in whatever order they were answered."""
    answers = _answers(0.1, 0.3, 0.2, 0.9)

    assert slowest_ms(reversed(answers), 3) == pytest.approx(300)
    assert isnan(slowest_ms([], 3))


def test_window() -> None:
    """A request belongs to the window in which it was meant to be sent, whenever that was possible."""
    answers = _answers(9.0, 9.0, 9.0, 9.0)

    assert [answer.due for answer in Window(1, 3, "").of(answers)] == [1, 2]
