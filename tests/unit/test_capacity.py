"""How many workers memory has room for."""

from __future__ import annotations

import pytest

from server.exits import ResourceError
from server.master import capacity
from server.models.finding import Finding
from server.settings import Settings

MIB = 1 << 20
MODEL = 76 * MIB  # with what a worker takes anyway: 100 MiB


def workers(monkeypatch: pytest.MonkeyPatch, limit: int, held: int = 0, **environ: str) -> int:
    """The number of workers, of 8 by default, in `limit` MiB of which the master holds `held`."""
    monkeypatch.setattr("server.settings.cores", lambda: 8)
    monkeypatch.setattr(capacity, "memory_limit", lambda: limit * MIB)
    monkeypatch.setattr(capacity, "memory", lambda: {"Pss": held * MIB})
    finding = Finding("m/1", "fake", "private", "", batched=True, shapes=[], private_bytes=MODEL)
    read = Settings.read({"WARMFORK_MEMORY_HEADROOM": "0.5"} | {f"WARMFORK_{name}": text for name, text in environ.items()})
    return capacity.workers(read, [finding])


@pytest.mark.parametrize(
    ("limit", "held", "environ", "count"),
    [
        (1600, 0, {}, 8),
        (1598, 0, {}, 7),
        (1600, 100, {}, 7),
        (1600, 0, {"STANDBY": "2"}, 6),
        (200, 0, {}, 1),
        (1600, 0, {"WORKERS": "8"}, 8),
        (600, 0, {"READY_QUORUM": "3"}, 3),
        (600, 0, {"READY_QUORUM": "3", "STANDBY": "1"}, 2),
        (400, 0, {"MEMORY_HEADROOM": "0"}, 4),
    ],
)
def test_fewer(monkeypatch: pytest.MonkeyPatch, limit: int, held: int, environ: dict[str, str], count: int) -> None:
    """By default there are as many workers as fit beside the master and the warm pool, with the headroom left free."""
    assert count == workers(monkeypatch, limit, held, **environ)


@pytest.mark.parametrize(
    ("limit", "held", "environ", "wanted"),
    [
        (198, 0, {}, 1),
        (100, 80, {}, 1),
        (1598, 0, {"WORKERS": "8"}, 8),
        (1600, 0, {"WORKERS": "8", "STANDBY": "1"}, 9),
        (400, 0, {"READY_MIN": "3"}, 3),
        (400, 0, {"READY_QUORUM": "3"}, 3),
        (400, 0, {"READY_QUORUM": "4", "STANDBY": "1"}, 4),
    ],
)
def test_too_few(monkeypatch: pytest.MonkeyPatch, limit: int, held: int, environ: dict[str, str], wanted: int) -> None:
    """What was asked for is never cut, and fewer than could open or be ready do not start; the line has the sums."""
    with pytest.raises(
        ResourceError, match=rf"^no memory for {wanted} workers: a worker takes 100 MiB, \d+ MiB are left of {limit} MiB"
    ):
        workers(monkeypatch, limit, held, **environ)
