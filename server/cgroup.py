"""What this process may use of the machine: cores and memory, as affinity and control groups leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may keep busy, at least 1: the affinity mask, cut to the tightest CPU quota above us."""
    count = len(os.sched_getaffinity(0))
    for group in _groups("cpu"):
        quota, _, period = (_read(group / "cpu.max") or "max").partition(" ")
        if quota == "max":  # or version 1, which writes -1 for no quota
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdigit():
            count = min(count, int(quota) // int(period))
    return max(count, 1)


def memory_limit() -> int:
    """Bytes that this process and its children may hold: the machine's, or the tightest memory limit above us."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(group / name)
            if text.isdigit():
                limit = min(limit, int(text))
    return limit


def _groups(controller: str) -> Iterator[Path]:
    """Our group and all above it, for cgroup version 2 and for `controller` of version 1."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, names, path = line.split(":", 2)
        if number == "0" or controller in names.split(","):
            top = ROOT if number == "0" else ROOT / controller
            group = top / path.lstrip("/")
            yield from (parent for parent in (group, *group.parents) if parent.is_relative_to(top))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
