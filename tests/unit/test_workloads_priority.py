"""The load generator goes before the servers that it measures, and they do not inherit it."""

from __future__ import annotations

import os

import pytest

from server.processes import fork_child
from workloads.priority import go_first


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_goes_first_alone() -> None:
    """Who goes first is scheduled in real time; what it forks is not."""
    refused, ahead, inherited = range(3)

    def child() -> int:
        if not go_first():
            return refused
        assert os.sched_getscheduler(0) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        return inherited if _ended(fork_child(lambda: os.sched_getscheduler(0))) else ahead

    if (status := _ended(fork_child(child))) == refused:
        pytest.skip("needs CAP_SYS_NICE")
    assert status == ahead
