"""How many workers memory has room for, from what the trial measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.cgroup import memory_limit
from server.exits import ResourceError
from server.models.finding import Finding
from server.processes import memory
from server.settings import Settings

WORKER_BYTES = 24 << 20
"""What a forked worker writes into besides its models: the interpreter, the app, its threads."""

_log = logging.getLogger("gunicorn.error")


def workers(settings: Settings, findings: Sequence[Finding]) -> int:
    """How many workers to start: as set, or fewer by default where memory says so.

    Raises `ResourceError` naming the bound if not even that fits, or if the environment says how many and they do not.
    """
    limit = memory_limit()
    each = WORKER_BYTES + sum(finding.private_bytes for finding in findings)
    room = int(limit * (1 - settings.memory_headroom)) - memory().get("Pss", 0)
    fitting = max(room, 0) // each - settings.standby
    if fitting >= settings.workers:
        return settings.workers
    sums = (
        f"a worker takes {each >> 20} MiB, {max(room, 0) >> 20} MiB are left of {limit >> 20} MiB "
        f"with WARMFORK_MEMORY_HEADROOM={settings.memory_headroom:g}"
    )
    fewest = (
        settings.workers if settings.workers_given else max(settings.ready_min, (settings.ready_quorum or 1) - settings.standby)
    )
    if fitting < fewest:
        message = f"no memory for {fewest + settings.standby} workers: {sums}"
        raise ResourceError(message)
    _log.warning("Starting %d workers and not %d: %s", fitting, settings.workers, sums)
    return fitting
