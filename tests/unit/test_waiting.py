"""The clock that stands still while a thread waits for a processor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from server.warmup import waiting


@pytest.mark.parametrize("kept", [[], [0], [1], [2], [0, 1], [1, 2, 3, 4]])
def test_own_clock(kept: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes what it takes, though its thread is kept from the processor right after some look at what it has waited."""
    clock = SimpleNamespace(now=100, waited=7, looks=0)

    def pread(*_: int) -> bytes:
        seen = f"5 {clock.waited * 10**9} 9\n"
        if clock.looks in kept:
            clock.now += 1
            clock.waited += 1
        clock.looks += 1
        return seen.encode()

    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(waiting, "os", SimpleNamespace(open=lambda *_: 0, close=lambda _: None, pread=pread, O_RDONLY=0))

    with waiting.own_clock() as own:
        start = own()
        clock.now += 0.25

        assert 0.25 == own() - start


def test_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not count, the clock goes on, and nobody has waited."""
    monkeypatch.setattr(waiting, "COUNTED", Path("/nowhere"))

    with waiting.own_clock() as own:
        assert own() <= own()
    assert 0 == waiting.waited()
