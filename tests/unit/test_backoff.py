"""How long the next worker waits where boots have failed."""

from __future__ import annotations

from server.master.backoff import Backoff, seconds


def test_seconds() -> None:
    """Boots that fail one after another make the next wait 1, 2, 4 … 30 seconds, and never more."""
    assert [0, 1, 2, 4, 8, 16, 30, 30, 30] == [seconds(failures) for failures in (*range(8), 10**9)]


def test_each_gpu_by_itself() -> None:
    """Who boots on one GPU does not wait for what fails on another, nor does it end another's wait when it has opened."""
    backoff = Backoff()
    backoff.fail(1)
    backoff.fail(1)
    backoff.crashed(0, 0)
    assert [1, 2, 0] == [backoff.seconds(gpu) for gpu in range(3)]

    backoff.opened(0)
    assert [0, 2] == [backoff.seconds(gpu) for gpu in range(2)]

    backoff.forget()
    assert 0 == backoff.seconds(1)
