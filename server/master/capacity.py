"""How many workers memory has room for, the machine's and that of GPUs, from what the trial measured."""

from __future__ import annotations

import logging
import os

from server.cgroup import memory_limit
from server.exits import ResourceError
from server.master.placement import GpuRoom
from server.processes import family, memory
from server.settings import Settings

WORKER_BYTES = 24 << 20
"""What a forked worker writes into besides its models: the interpreter, the app, its threads."""

_log = logging.getLogger("gunicorn.error")


class Room:
    """What is left of memory, and of that of GPUs, beside the headroom and all that the server holds by now."""

    def __init__(self, settings: Settings, model_bytes: int, root: int | None = None, gpus: GpuRoom | None = None) -> None:
        """Look at `root`, this process if it is not given, and all below it, before workers are forked.

        `model_bytes`: what each adds for its models. `gpus`: what is left of those that they run on, if they do.
        """
        self.settings = settings
        self.limit = memory_limit()
        self.each = WORKER_BYTES + model_bytes
        held = sum(memory(pid).get("Pss", 0) for pid in family(root or os.getpid()))
        self.left = max(int(self.limit * (1 - settings.memory_headroom)) - held, 0)
        self.fitting = self.left // self.each
        self.sums = (
            f"a worker takes {self.each >> 20} MiB, {self.left >> 20} MiB are left of {self.limit >> 20} MiB "
            f"with WARMFORK_MEMORY_HEADROOM={settings.memory_headroom:g}"
        )
        if gpus and gpus.fitting < self.fitting:
            self.fitting, self.sums = gpus.fitting, gpus.sums

    def first(self, fewest: int = 0) -> int:
        """How many active workers to start: as set, or fewer by default where memory says so, but not less than `fewest`.

        Raises `ResourceError` naming the bound if not even that fits, or if it was said how many and they do not.
        """
        settings, fitting = self.settings, self.fitting - self.settings.standby
        if fitting >= settings.workers:
            return settings.workers
        least = max(fewest, settings.ready_min, (settings.ready_quorum or 1) - settings.standby)
        fewest = settings.workers if settings.workers_given else min(least, settings.workers)
        if fitting < fewest:
            message = f"no memory for {fewest + settings.standby} workers: {self.sums}"
            raise ResourceError(message)
        _log.warning("Starting %d workers and not %d: %s", fitting, settings.workers, self.sums)
        return fitting

    def beside(self, wanted: int) -> int:
        """How many of `wanted` workers to start at once beside a generation that serves: all, or one at a time.

        Raises `ResourceError` naming the bound if there is room for none.
        """
        if not self.fitting:
            message = f"no memory for a worker beside those that serve: {self.sums}"
            raise ResourceError(message)
        if self.fitting >= wanted:
            return wanted
        _log.warning("No memory for %d workers beside those that serve, so one at a time takes over: %s", wanted, self.sums)
        return 1
