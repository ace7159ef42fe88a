"""Cores and memory, from trees of control groups as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server import cgroup

CORES = 8
PAGES = 1 << 20
TOTAL = PAGES * 4096
V2 = "0::/a/b\n"
V1 = "7:cpu,cpuacct:/a/b\n4:memory:/a/b\n1:name=systemd:/odd:path\n"

Tree = dict[str, str]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 cores and 4 GiB; gives the root of its control groups, which are none yet."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": PAGES}.__getitem__)
    return tmp_path


def grow(root: Path, monkeypatch: pytest.MonkeyPatch, ours: str, tree: Tree) -> None:
    """Write the files of `tree`, and make `ours` what `/proc/self/cgroup` says."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    own = root / "self"
    own.write_text(ours, encoding="ascii")
    read = Path.read_text

    def read_text(path: Path, encoding: str | None = None) -> str:
        return read(own if path == Path("/proc/self/cgroup") else path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("ours", "tree", "cores"),
    [
        (V2, {}, CORES),
        ("", {"cpu.max": "100000 100000"}, CORES),
        (V2, {"a/b/cpu.max": "max 100000"}, CORES),
        (V2, {"a/b/cpu.max": "300000 100000"}, 3),
        (V2, {"a/b/cpu.max": "390000 100000"}, 3),
        (V2, {"a/b/cpu.max": "50000 100000"}, 1),
        (V2, {"a/b/cpu.max": "9900000 100000"}, CORES),
        (V2, {"a/b/cpu.max": "600000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        (V2, {"a/b/cpu.max": "200000 100000", "a/cpu.max": "600000 100000"}, 2),
        (V2, {"other/cpu.max": "100000 100000"}, CORES),
        ("0::/not/shown/in/here\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/../../elsewhere\n", {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, CORES),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "250000", "cpu/a/b/cpu.cfs_period_us": "50000"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
        (V1, {"memory/a/b/cpu.cfs_quota_us": "100000", "memory/a/b/cpu.cfs_period_us": "100000"}, CORES),
        ("0::/\n" + V1, {"cpu/a/b/cpu.cfs_quota_us": "400000", "cpu/a/b/cpu.cfs_period_us": "100000", "a/cpu.max": "1 1"}, 4),
    ],
)
def test_cores(machine: Path, monkeypatch: pytest.MonkeyPatch, ours: str, tree: Tree, cores: int) -> None:
    """The tightest quota of our group and all above it counts, rounded down, but one core is always ours."""
    grow(machine, monkeypatch, ours, tree)

    assert cores == cgroup.cores()


def test_affinity(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to few cores has no more by a generous quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    grow(machine, monkeypatch, V2, {"a/b/cpu.max": "600000 100000"})

    assert 2 == cgroup.cores()


@pytest.mark.parametrize(
    ("ours", "tree", "limit"),
    [
        (V2, {}, TOTAL),
        (V2, {"a/b/memory.max": "max", "a/memory.high": "max"}, TOTAL),
        (V2, {"a/b/memory.max": "1000000"}, 1_000_000),
        (V2, {"a/b/memory.max": "1000000", "a/memory.max": "900000", "memory.max": "950000"}, 900_000),
        (V2, {"a/b/memory.max": "1000000", "a/b/memory.high": "800000"}, 800_000),
        (V2, {"a/b/memory.max": str(2 * TOTAL)}, TOTAL),
        (V1, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712"}, TOTAL),
        (V1, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712", "memory/memory.limit_in_bytes": "700000"}, 700_000),
        (V1, {"cpu/a/b/memory.limit_in_bytes": "700000"}, TOTAL),
    ],
)
def test_memory_limit(machine: Path, monkeypatch: pytest.MonkeyPatch, ours: str, tree: Tree, limit: int) -> None:
    """The machine's memory, or the tightest limit of our group and all above it."""
    grow(machine, monkeypatch, ours, tree)

    assert limit == cgroup.memory_limit()
