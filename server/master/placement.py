"""On which GPU a worker goes, and how many workers the memory of all of them has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from server.exits import ResourceError
from server.gpus import find
from server.settings import Settings

WHILE_SERVING = 10.0
"""Seconds that NVML may take while workers serve and the master, who waits for it, hears nothing. Their driver is awake."""


def placed(every: Iterable[int], own: Iterable[int], count: int, vacated: int) -> Iterator[int]:
    """The GPUs, of `count`, for more workers of a generation, one after another; who is there is given as the GPU that he has.

    Where fewest are of their `own` generation, then of `every` one, then where the one was that has left last: so that whoever
    replaces a worker gets its GPU, and a generation that takes over one by one the memory of those that leave.
    """
    of_every, of_own = Counter(every), Counter(own)
    while True:
        gpu = min(range(count), key=lambda gpu: (of_own[gpu], of_every[gpu], gpu != vacated, gpu))
        yield gpu
        of_every[gpu] += 1
        of_own[gpu] += 1


class GpuRoom:
    """What is left of the memory of each GPU, beside the headroom and what anybody holds by now."""

    def __init__(
        self,
        settings: Settings,
        each: int,
        coming: Iterator[int],
        booting: Callable[[], Iterable[int]],
        seconds: float = WHILE_SERVING,
    ) -> None:
        """Ask NVML, before workers are forked of which `each` takes so many bytes; for up to `seconds`.

        `coming`: the GPU of each, one after another. `booting` gives that of each which has one, and may hold nothing of it yet.
        Raises `ResourceError` if NVML fails.
        """
        self.each = each
        self.headroom = settings.memory_headroom
        now = {gpu.uuid: gpu.used for devices in find(seconds) for gpu in devices}
        left = [int(gpu.total * (1 - self.headroom)) - now.get(gpu.uuid, gpu.total) for gpu in settings.gpus]
        for index in booting():
            left[index] -= each
        self.fitting = 0
        """How many workers fit, until the GPU of the next one is full."""
        for index in coming:
            if left[index] < each:
                break
            left[index] -= each
            self.fitting += 1
        self.full, self.left = settings.gpus[index], max(left[index], 0)
        self.gone = self.full.uuid not in now

    @property
    def sums(self) -> str:
        """What stands in the way of more, in words."""
        if self.gone:
            return f"{self.full.device} ({self.full.name}, {self.full.uuid}) has gone, as NVML says"
        return (
            f"a worker takes {self.each >> 20} MiB of its GPU, {self.left >> 20} MiB are left of {self.full.total >> 20} MiB "
            f"on {self.full.device} ({self.full.name}) after {self.fitting} of them, "
            f"with WARMFORK_MEMORY_HEADROOM={self.headroom:g}"
        )

    def expect(self, count: int) -> None:
        """Raise `ResourceError` naming the bound where not so many fit."""
        if self.fitting < count:
            message = f"no memory for one more worker: {self.sums}"
            raise ResourceError(message)
