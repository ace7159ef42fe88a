"""The end of a server as its master brings it about: who is let in no more, and what comes first."""

from __future__ import annotations

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
        beside=False,
        stop=lambda: done.append("stop"),
    )
    with pytest.raises(StopIteration):
        Handlers(cast("Any", arbiter), cast("Any", master)).term()
    assert done == ["shut ['socket']"] * shut + ["stop", "signals"]
