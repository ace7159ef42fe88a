"""What a benchmark hands back: figures, each with its bound and its control, as JSON and as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench import machine

Say = Callable[[str], None]
"""Tells whoever waits how far the benchmark is."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that was measured; `bound` is the most that it may be, `least` the least."""

    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    control: float | None = None
    """The same with what it measures switched off, or of what it is compared with."""
    least: float | None = None
    failed: bool = False
    """Whether it says that something could not be measured, and how that ended."""

    @property
    def bounds(self) -> str:
        """What it must be, for people; empty if it may be anything."""
        signs = (("≥", self.least), ("≤", self.bound))
        return ", ".join(f"{sign} {bound:.3g}" for sign, bound in signs if bound is not None)

    @property
    def broken(self) -> bool:
        """Whether it is past a bound; what is no number is, and what could not be measured."""
        over = self.bound is not None and not self.value <= self.bound
        return self.failed or over or (self.least is not None and not self.value >= self.least)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one benchmark, and what they were made from."""

    figures: list[Figure]
    control: str = ""
    """What stands in the column of controls."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether any figure is past a bound of its own."""
        return any(figure.broken for figure in self.figures)


def write(report: Report, path: Path) -> None:
    """Write one report with the facts of this machine."""
    path.parent.mkdir(exist_ok=True)
    content = {
        "verdict": _verdict(broken=report.broken),
        "figures": report.figures,
        "control": report.control,
        "details": report.details,
        "machine": machine.facts(),
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def table(reports: Mapping[str, Report]) -> str:
    """All reports as lines for a terminal: name, figure, bound, control."""
    rows = [("", "figure", "bound", "control", "")]
    for name, report in reports.items():
        rows.append((f"{name}", "", "", "", f"control: {report.control}" if report.control else ""))
        for figure in report.figures:
            value, control = (_shown(each, figure.unit) for each in (figure.value, figure.control))
            verdict = _verdict(broken=figure.broken) if figure.bounds or figure.failed else ""
            rows.append((f"  {figure.name}", value, figure.bounds, control, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {bound:>{widths[2]}}  {control:>{widths[3]}}  {note}".rstrip()
        for name, value, bound, control, note in rows
    )


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - four digits need no point
    return f"{digits} {unit}".rstrip()


def _verdict(*, broken: bool) -> str:
    return "BROKEN" if broken else "holds"
