"""Figures of a benchmark: what is past a bound is said to be, in the table and in the verdict."""

from __future__ import annotations

import pytest

from bench.report import Figure, Report, table

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "bound", "least", "broken"),
    [
        (1.0, None, None, False),
        (NAN, None, None, False),
        (1.0, 1.0, None, False),
        (1.1, 1.0, None, True),
        (NAN, 1.0, None, True),
        (3.0, None, 3.0, False),
        (2.9, None, 3.0, True),
        (NAN, None, 3.0, True),
        (0.0, None, 0.5, True),
        (2.0, 3.0, 1.0, False),
        (0.5, 3.0, 1.0, True),
        (3.5, 3.0, 1.0, True),
    ],
)
def test_broken(value: float, bound: float | None, least: float | None, broken: bool) -> None:  # noqa: FBT001 - a column of the table
    """A figure is broken over its upper bound, under its lower one, and where it is no number but has a bound."""
    figure = Figure("figure", value, bound=bound, least=least)

    assert broken == figure.broken
    assert broken == Report([Figure("other", 1.0), figure]).broken


def test_table() -> None:
    """A row has its figure, its bounds, its control and whether it holds; without a bound there is no verdict."""
    figures = [
        Figure("fast", 3.25, "×", control=1.0, least=3.0),
        Figure("slow", 2.0, "×", least=3.0),
        Figure("late", 101.0, "ms", 100.0),
        Figure("both", 1.0, "", 2.0, least=0.5),
        Figure("free", 1234.5, "/s"),
    ]

    rows = [line.split("  ") for line in table({"some": Report(figures, "itself")}).splitlines()[2:]]

    assert [
        ["fast", "3.25 ×", "≥ 3", "1 ×", "holds"],
        ["slow", "2 ×", "≥ 3", "BROKEN"],
        ["late", "101 ms", "≤ 100", "BROKEN"],
        ["both", "1", "≥ 0.5, ≤ 2", "holds"],
        ["free", "1,234 /s"],
    ] == [[cell.strip() for cell in row if cell.strip()] for row in rows]
