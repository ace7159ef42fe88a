"""The end of a server as its master brings it about: who is let in no more, and what comes first."""

from __future__ import annotations

import signal
from collections.abc import Callable
from queue import SimpleQueue
from signal import SIGCHLD, SIGINT, SIGKILL, SIGQUIT, SIGTERM, Signals
from types import MethodType, SimpleNamespace
from typing import Any, cast

import pytest
from gunicorn.arbiter import Arbiter

from hooks import signals
from hooks.signals import Handlers
from server import gate

TCP = [("127.0.0.1", 8000)]


def _arbiter(**fields: Any) -> SimpleNamespace:
    """As much of gunicorn's arbiter as a handler looks at, with its own wait for signals."""
    queue: SimpleQueue[int] = SimpleQueue()
    made = SimpleNamespace(
        SIG_QUEUE=queue,
        WAKEUP_REQUEST=Arbiter.WAKEUP_REQUEST,
        signal=lambda number, _frame: queue.put(number),
        **{"handle_chld": None, "handle_quit": None, **fields},
    )
    made.wait_for_signals = MethodType(Arbiter.wait_for_signals, made)
    return made


def _ending(stop: Callable[[], None], *, others_serve: bool = False) -> Any:
    """As much of the master as its end looks at."""
    hand_over = SimpleNamespace(successor=SimpleNamespace(end=lambda: None), others_serve=others_serve, backed=False)
    return SimpleNamespace(hand_over=hand_over, drain=lambda: True, stop=stop)


@pytest.mark.parametrize(
    ("address", "systemd", "others_serve", "shut"),
    [
        (TCP, False, False, True),
        ([3], False, False, False),
        (TCP, True, False, False),
        (TCP, False, True, False),
    ],
    ids=["ours", "bound before", "systemd's", "a new master's"],
)
def test_sockets_are_shut_first(
    monkeypatch: pytest.MonkeyPatch, address: list[Any], *, systemd: bool, others_serve: bool, shut: bool
) -> None:
    """Sockets that end with the server are shut before any worker can know that it leaves; others stay open.

    Before that takes its time, a TERM already means to hurry.
    """
    done: list[str] = []
    monkeypatch.setattr(gate, "shut", lambda sockets: done.append(f"shut {sockets}"))
    monkeypatch.setattr(Handlers, "_last_signals", lambda *_: done.append("signals"))
    arbiter = _arbiter(
        systemd=systemd,
        cfg=SimpleNamespace(address=address),
        LISTENERS=[SimpleNamespace(sock="socket")],
    )
    with pytest.raises(StopIteration):
        Handlers(cast("Any", arbiter), _ending(lambda: done.append("stop"), others_serve=others_serve)).term()
    assert done == ["signals"] + ["shut ['socket']"] * shut + ["stop"]


@pytest.mark.parametrize(("second", "heard"), [(SIGTERM, SIGQUIT), (SIGINT, SIGINT), (SIGQUIT, SIGQUIT)])
def test_second_behind_the_first(second: Signals, heard: Signals) -> None:
    """A second signal that the master takes in together with a TERM is not lost: gunicorn's stop finds that it is to hurry."""
    arbiter = _arbiter(systemd=True)
    for number in (SIGCHLD, SIGTERM, SIGCHLD, second):
        arbiter.signal(number, None)
    handlers = Handlers(cast("Any", arbiter), _ending(lambda: None))
    assert [[SIGCHLD], [SIGTERM]] == [handlers.wait(), handlers.wait()]
    handler = signal.getsignal(SIGTERM)
    try:
        with pytest.raises(StopIteration):
            handlers.term()
    finally:
        signal.signal(SIGTERM, handler)
    assert heard == arbiter.SIG_QUEUE.get_nowait()
    assert arbiter.SIG_QUEUE.empty()


def test_heard_all() -> None:
    """A signal that has come and is not handled is not heard, whether gunicorn has seen it or not."""
    arbiter = _arbiter()
    handlers = Handlers(cast("Any", arbiter), _ending(lambda: None))
    for number in (SIGCHLD, SIGTERM):
        arbiter.signal(number, None)
    seen = [handlers.heard_all]
    for _ in range(2):
        handlers.wait()
        seen.append(handlers.heard_all)
    assert seen == [False, False, True]
    assert handlers.wait(timeout=0.0) == []


@pytest.mark.parametrize(("how", "reaped"), [(0, [0, 1, 1, 2]), (SIGKILL, [1, 2, 3, 4])], ids=["asked", "killed"])
def test_who_asked_is_heard_first(monkeypatch: pytest.MonkeyPatch, how: int, reaped: list[int]) -> None:
    """A worker that has ended as it does when it is asked to waits one turn for notice, in which our own signal may come."""
    taken: list[int] = []
    monkeypatch.setattr(signals, "any_ended", lambda: True)
    monkeypatch.setattr(signals, "_rearm", lambda _: None)
    monkeypatch.setattr(signals, "ends", {})
    arbiter = _arbiter(handle_chld=lambda: taken.append(1), WORKERS={7: None}, reexec_pid=0)
    master = SimpleNamespace(
        hand_over=SimpleNamespace(successor=SimpleNamespace(pid=0)),
        watch=lambda pids: dict.fromkeys(pids, how),
        tick=lambda *, heard_all: heard_all,
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
