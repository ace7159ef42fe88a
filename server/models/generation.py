"""A generation: the models that a number of workers serve together, and hand over together."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.models.holding import Holding


@dataclass(eq=False)
class Generation:
    """Numbered from 1 in the order in which they were begun."""

    number: int
    holdings: list[Holding] = field(default_factory=list)
