"""A generation: the models that a number of workers serve together, and hand over together."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.models.finding import NOTHING, Taken
from server.models.holding import Holding


@dataclass(eq=False)
class Generation:
    """Numbered from 1 in the order in which they were begun."""

    number: int
    holdings: list[Holding] = field(default_factory=list)
    taken: Taken = NOTHING
    """What those of its models that run on a GPU take of a worker."""

    @property
    def on_gpu(self) -> bool:
        """Whether its workers run any of its models on a GPU."""
        return any(holding.on_gpu for holding in self.holdings)

    @property
    def private_bytes(self) -> int:
        """What one worker adds for its models, of the machine's memory."""
        return self.taken.private_bytes + sum(each.finding.private_bytes for each in self.holdings if not each.on_gpu)
