"""A generation: the models that a number of workers serve together, and hand over together."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.models.holding import Holding


@dataclass(eq=False)
class Generation:
    """Numbered from 1 in the order in which they were begun."""

    number: int
    holdings: list[Holding] = field(default_factory=list)
    gpu_bytes: int = 0
    """What its models together take of a worker's GPU, the CUDA context included; 0 where none runs on one."""

    @property
    def on_gpu(self) -> bool:
        """Whether its workers run any of its models on a GPU."""
        return any(holding.on_gpu for holding in self.holdings)
