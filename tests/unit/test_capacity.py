"""How many workers memory has room for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from server.exits import ResourceError
from server.master import capacity
from server.master.capacity import Room
from server.settings import Settings

MIB = 1 << 20
MODEL = 76 * MIB  # with what a worker takes anyway: 100 MiB


def machine(monkeypatch: pytest.MonkeyPatch, limit: int, held: int, **environ: str) -> tuple[Settings, int]:
    """What is asked for and what was found on a machine of 8 cores and `limit` MiB, of which two processes hold `held`."""
    monkeypatch.setattr("server.settings.cores", lambda: 8)
    monkeypatch.setattr(capacity, "memory_limit", lambda: limit * MIB)
    monkeypatch.setattr(capacity, "family", lambda _pid: [1, 2])
    monkeypatch.setattr(capacity, "memory", lambda _pid: {"Pss": held * MIB // 2})
    read = Settings.read({"WARMFORK_MEMORY_HEADROOM": "0.5"} | {f"WARMFORK_{name}": text for name, text in environ.items()})
    return read, MODEL


def room(monkeypatch: pytest.MonkeyPatch, limit: int, held: int = 0, **environ: str) -> Room:
    """The room for workers, of which there are 8 by default, in `limit` MiB; the master and another process hold `held`."""
    return Room(*machine(monkeypatch, limit, held, **environ))


def room_on_gpus(monkeypatch: pytest.MonkeyPatch, limit: int, fitting: int, **environ: str) -> Room:
    """The same where they run on GPUs, in which there is room for `fitting`."""
    gpus: Any = SimpleNamespace(fitting=fitting, sums="the sums of GPUs")
    return Room(*machine(monkeypatch, limit, 0, **environ), gpus=gpus)


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
    assert count == room(monkeypatch, limit, held, **environ).first()


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
        room(monkeypatch, limit, held, **environ).first()


def test_as_many_as_another_master(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new master has no fewer workers than the one whose place it is to take, or does not start."""
    assert 7 == room(monkeypatch, 1598).first(7)
    with pytest.raises(ResourceError, match=r"^no memory for 8 workers: "):
        room(monkeypatch, 1598).first(8)


@pytest.mark.parametrize(("limit", "held", "count"), [(1800, 100, 8), (1798, 100, 1), (400, 100, 1)])
def test_beside(monkeypatch: pytest.MonkeyPatch, limit: int, held: int, count: int) -> None:
    """Beside a generation that serves another starts as a whole, or one worker at a time where memory says so."""
    assert count == room(monkeypatch, limit, held).beside(8)


def test_none_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for one, the line has the sums."""
    line = "^no memory for a worker beside those that serve: a worker takes 100 MiB, 99 MiB are left of 398 MiB"
    with pytest.raises(ResourceError, match=line):
        room(monkeypatch, 398, 100).beside(8)


@pytest.mark.parametrize(("limit", "on_gpus", "count"), [(1600, 9, 8), (1600, 5, 5), (600, 5, 3), (600, 1, 1)])
def test_on_gpus(monkeypatch: pytest.MonkeyPatch, limit: int, on_gpus: int, count: int) -> None:
    """The scarcer of both memories says how many workers there are by default."""
    assert count == room_on_gpus(monkeypatch, limit, on_gpus).first()


def test_none_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused hears of the one that lacks."""
    with pytest.raises(ResourceError, match=r"^no memory for 2 workers: the sums of GPUs$"):
        room_on_gpus(monkeypatch, 1600, 1, WORKERS="2").first()
    with pytest.raises(ResourceError, match=r"^no memory for 2 workers: a worker takes 100 MiB"):
        room_on_gpus(monkeypatch, 198, 1, WORKERS="2").first()
    assert 1 == room_on_gpus(monkeypatch, 1600, 1).beside(2)
