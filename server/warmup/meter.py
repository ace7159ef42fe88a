"""The most that a process takes of a GPU's memory while it warms: what is tried out is freed again, and NVML knows no peak."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from server.exits import ResourceError
from server.gpus import Gpu
from server.nvml import held, used

SECONDS = 0.005
"""Between two looks."""


class Meter:
    """`with Meter(gpu) as meter:`, then `meter.bytes`. For a process that may use CUDA, and forks no more."""

    def __init__(self, gpu: Gpu) -> None:
        """Look at `gpu`."""
        self.gpu = gpu
        self.bytes = 0
        """The most, beyond what was held before."""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, name="meter", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self.before = used(self.gpu)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End, after a last look. Raises `ResourceError` where NVML could not tell."""
        self.over.set()
        self.thread.join()
        if not self.bytes and not kind:
            message = f"NVML can't tell how much of {self.gpu.device} ({self.gpu.name}) its models take"
            raise ResourceError(message)

    def _look(self) -> None:
        ended = False
        while not ended:
            ended = self.over.wait(SECONDS)
            # The first where NVML can tell processes apart; then others may come and go meanwhile.
            self.bytes = max(self.bytes, held(self.gpu) or used(self.gpu) - self.before)
