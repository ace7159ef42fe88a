"""How long the next worker waits before it boots, where boots have failed."""

from __future__ import annotations

from collections import Counter

LONGEST = 30


class Backoff:
    """Kept by GPU: what ends boots on one need not end them on another. Who runs on the processor counts as on the first."""

    def __init__(self) -> None:
        """Begin with no failure."""
        self.failures: Counter[int] = Counter()
        """By GPU, boots that failed one after another, and workers that crashed as soon as they were open."""

    def fail(self, gpu: int) -> None:
        """One more boot has failed."""
        self.failures[gpu] += 1

    def crashed(self, gpu: int, before: int) -> None:
        """One has crashed just after opening; `before` its fork so many had failed. Those that do so with it count as one."""
        self.failures[gpu] = max(self.failures[gpu], before + 1)

    def opened(self, gpu: int) -> None:
        """One has opened: boots no longer fail there."""
        del self.failures[gpu]

    def forget(self) -> None:
        """What comes next are other models."""
        self.failures.clear()

    def seconds(self, gpu: int) -> float:
        """How long the next worker waits there."""
        return seconds(self.failures[gpu])


def seconds(failures: int) -> float:
    """How long a worker waits before it boots: 0, then 1, 2, 4 … 30 as boots fail one after another."""
    return float(min(1 << min(failures - 1, 10), LONGEST)) if failures else 0.0
