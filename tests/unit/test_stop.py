"""The end of a server as its master brings it about: who is let in no more, and what comes first."""

from __future__ import annotations

from signal import SIGKILL
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hooks import signals
from hooks.signals import Handlers
from server import gate

TCP = [("127.0.0.1", 8000)]


@pytest.mark.parametrize(
    ("address", "systemd", "handed_over", "shut"),
    [
        (TCP, False, False, True),
        ([3], False, False, False),
        (TCP, True, False, False),
        (TCP, False, True, False),
    ],
    ids=["ours", "bound before", "systemd's", "a new master's"],
)
def test_sockets_are_shut_first(
    monkeypatch: pytest.MonkeyPatch, address: list[Any], *, systemd: bool, handed_over: bool, shut: bool
) -> None:
    """Sockets that end with the server are shut before any worker can know that it leaves; others stay open."""
    done: list[str] = []
    monkeypatch.setattr(gate, "shut", lambda sockets: done.append(f"shut {sockets}"))
    monkeypatch.setattr(signals, "_last_signals", lambda *_, **__: done.append("signals"))
    arbiter = SimpleNamespace(
        handle_chld=None,
        handle_quit=None,
        systemd=systemd,
        cfg=SimpleNamespace(address=address),
        LISTENERS=[SimpleNamespace(sock="socket")],
    )
    master = SimpleNamespace(
        successor=SimpleNamespace(end=lambda: None),
        drain=lambda: True,
        handed_over=handed_over,
        backed=False,
        stop=lambda: done.append("stop"),
    )
    with pytest.raises(StopIteration):
        Handlers(cast("Any", arbiter), cast("Any", master)).term()
    assert done == ["shut ['socket']"] * shut + ["stop", "signals"]


@pytest.mark.parametrize(("how", "reaped"), [(0, [0, 1, 1, 2]), (SIGKILL, [1, 2, 3, 4])], ids=["asked", "killed"])
def test_who_asked_is_heard_first(monkeypatch: pytest.MonkeyPatch, how: int, reaped: list[int]) -> None:
    """A worker that has ended as it does when it is asked to waits one turn for notice, in which our own signal may come."""
    taken: list[int] = []
    monkeypatch.setattr(signals, "any_ended", lambda: True)
    monkeypatch.setattr(signals, "_rearm", lambda _: None)
    monkeypatch.setattr(signals, "ends", {})
    arbiter = SimpleNamespace(handle_chld=lambda: taken.append(1), handle_quit=None, WORKERS={7: None}, reexec_pid=0)
    master = SimpleNamespace(
        successor=SimpleNamespace(pid=0),
        watch=lambda pids: dict.fromkeys(pids, how),
        tick=lambda: None,
        busy=False,
        due=False,
        over=lambda: False,
    )
    handlers = Handlers(cast("Any", arbiter), cast("Any", master))
    seen = []
    for _ in reaped:
        handlers.chld()
        seen.append(len(taken))
    assert seen == reaped
    assert signals.ends == {7: how}
