"""What two masters know of each other in a USR2: an environment variable, and a pipe with lines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.management import heir as management
from server.master import successor as masters
from server.master.handover import HandOver
from server.master.predecessor import INHERITED, Predecessor
from server.master.successor import Successor
from server.master.words import Words
from server.processes import fork_child
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Phase


@pytest.fixture
def old() -> Successor:
    """What an old master knows, whose new one is to be forked."""
    successor = Successor(Settings.read({"WARMFORK_BOOT_TIMEOUT": "10"}), Words(Scoreboard.create(1)))
    successor.prepare()
    return successor


@pytest.fixture
def new(old: Successor) -> Iterator[Predecessor]:
    """What the new one knows: it is this same process, for once."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        environ: dict[str, str] = {}
        management, pipe = os.dup(sock.fileno()), os.dup(old.theirs)
        old.bequeath(environ, sock, 3, True, False)  # noqa: FBT003 - as `Predecessor` takes them
        assert os.get_inheritable(sock.fileno())
        assert os.get_inheritable(old.theirs)
        assert environ[INHERITED] == f"{sock.fileno()},{old.theirs},3,1,0"
        environ[INHERITED] = f"{management},{pipe},3,1,0"
        found = Predecessor.find(environ)
        assert found
        assert INHERITED not in environ
        yield found
        found.socket.close()
        os.close(pipe)


def test_no_predecessor() -> None:
    """A master that nobody handed over to has none."""
    assert Predecessor.find({}) is None


@pytest.mark.usefixtures("new")
def test_serves_alone(old: Successor, new: Predecessor) -> None:
    """A new master knows when the old one serves no more, though that still finishes what it had accepted."""
    old.began(os.getpid())
    before = new.leaving

    old.let_go()

    assert (before, new.leaving) == (False, True)
    assert not old.pid


def test_lines(old: Successor, new: Predecessor) -> None:
    """The new one's steps are put on the page; `warm` ends them; a word of a later version is no error."""
    assert (3, True, False, False) == (new.active, new.scaled, new.systemd, new.gone)
    old.began(os.getpid())
    new.say("doing", "one\nand two")
    old.listen()
    assert old.words.doing == f"new master {os.getpid()}: one and two"
    new.say("singing", "a song")
    new.say("warm")
    assert not old.warm
    old.listen()
    assert (True, "") == (old.warm, old.words.doing)


def test_a_line_in_pieces(old: Successor, new: Predecessor) -> None:
    """A line counts when it is whole."""
    old.began(os.getpid())
    os.write(new.pipe, b"wa")
    old.listen()
    assert not old.warm
    os.write(new.pipe, b"rm\n")
    old.listen()
    assert old.warm


def test_why_it_failed(old: Successor, new: Predecessor, caplog: pytest.LogCaptureFixture) -> None:
    """What the new one said first is why it ended, in the log and in the reasons; then another may be started."""
    old.words.reload_refused = reload = "generation 2 was refused: no luck"  # of which a hand-over says nothing
    old.began(12345)
    new.say("failed", "model m/1: no luck")
    old.ended(70)
    line = "USR2 was refused: the new master ended with status 70: model m/1: no luck"
    assert (line, [reload, line], 0) == (caplog.messages[-1], old.words.reasons, old.pid)
    old.prepare()
    old.began(12346)
    assert [reload] == old.words.reasons
    old.ended(signal.SIGSEGV)
    assert [reload, "USR2 was refused: the new master was killed by SIGSEGV"] == old.words.reasons


def test_taken_back(old: Successor, new: Predecessor) -> None:
    """A new master that has failed does not serve, whatever it has said before or says after, and the first reason counts."""
    old.began(os.getpid())
    warm = []
    for word, why in (("warm", ""), ("failed", "told to end"), ("failed", "late"), ("warm", "")):
        new.say(word, why)
        old.listen()
        warm.append(old.warm)
    assert ([True, False, False, False], "told to end") == (warm, old.failed)


def test_ended_with_the_server(old: Successor, new: Predecessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new master is told once that the server goes, also if it serves by now; its end is then no refusal."""
    sent: list[signal.Signals] = []
    monkeypatch.setattr(Successor, "_send", lambda _self, number: sent.append(number))
    old.end()
    old.began(12345)
    new.say("warm")
    old.listen()
    old.end()
    old.end()
    old.ended(0)
    assert [signal.SIGTERM] == sent
    assert [] == old.words.reasons


def test_silence(old: Successor, new: Predecessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new master that says nothing for four boot deadlines is told to end, then killed; each word gives it as long again."""
    now = 0.0
    monkeypatch.setattr(masters, "time", SimpleNamespace(monotonic=lambda: now))
    read, write = os.pipe()

    def deaf() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b".")
        return signal.sigwait([signal.SIGUSR1])

    pid = fork_child(deaf)
    os.read(read, 1)
    old.began(pid)
    now = 39.0
    new.say("doing", "something")
    old.listen()
    now = 78.0
    old.listen()
    assert not old.failed
    now = 79.5
    old.listen()
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    now = 79.6 + old.grace
    old.listen()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    old.ended(signal.SIGKILL)
    assert "was killed by SIGKILL: silent for more than 40 s (4 × WARMFORK_BOOT_TIMEOUT)" in old.words.reasons[0]


def test_old_one_does_not_listen(old: Successor, new: Predecessor) -> None:
    """A new master never waits for an old one: not for one that stands still, not for one that is gone."""
    for _ in range(2000):
        new.say("doing", "x" * 100)
    os.close(old.pipe)
    os.close(old.theirs)
    new.say("warm")


def test_what_it_has_missed(old: Successor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the old master was asked meanwhile is passed on when the new one serves, one at a time; a reload once."""
    sent: list[signal.Signals] = []
    monkeypatch.setattr(Successor, "_send", lambda _self, number: sent.append(number))
    old.miss(signal.SIGTTIN)  # before it began, so that it knows
    old.began(12345)
    asked = [signal.SIGTTIN, signal.SIGHUP, signal.SIGTTIN, signal.SIGHUP, signal.SIGTTOU]
    for number in asked:
        old.miss(number)

    for _ in asked:
        old.catch_up()

    assert [signal.SIGTTIN, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU] == sent


def test_told_when_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old master is told once, when the new server has been ready all through a while."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(management, "time", SimpleNamespace(monotonic=lambda: clock.now))
    view = SimpleNamespace(ready=lambda: SimpleNamespace(ready=clock.now not in (0.5, 1.4)))
    read, write = os.pipe()
    os.set_blocking(read, False)
    heir = management.Heir(cast("Any", view), write)
    for now in (0.4, 0.5, 1.0, 1.4, 1.6, 2.3):
        clock.now = now
        assert not heir.takes_over()
    with pytest.raises(BlockingIOError):
        os.read(read, 100)

    for now in (2.4, 2.5, 4.0):
        clock.now = now
        assert heir.takes_over()

    assert os.read(read, 100) == b"warm\n"
    assert os.read(read, 100) == b""
    os.close(read)


def test_told_later() -> None:
    """An old master that has not read for long is told when it does."""
    view = SimpleNamespace(ready=lambda: SimpleNamespace(ready=True))
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x")
    heir = management.Heir(cast("Any", view), write)
    heir.since -= management.BAKED_SECONDS
    assert not heir.takes_over()
    os.read(read, 1 << 20)
    assert heir.takes_over()
    assert os.read(read, 100) == b"warm\n"
    os.close(read)


def test_nobody_is_told() -> None:
    """Where the old master has ended, the new process answers at once, ready or not."""
    view = SimpleNamespace(ready=lambda: SimpleNamespace(ready=False))
    read, write = os.pipe()
    heir = management.Heir(cast("Any", view), write)
    assert not heir.takes_over()
    os.close(read)
    assert heir.takes_over()


def _between(successor: int = 0, predecessor: int = 0) -> Any:
    """What a master knows that has those pids after and before it."""
    board = Scoreboard.create(1)
    made = cast("Any", HandOver(board, Settings.read({}), Words(board), None))
    made.successor.pid = successor
    made.predecessor = SimpleNamespace(pid=predecessor, gone=False) if predecessor else None
    return made


def test_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A USR2 in a reload is not refused: its new master is due once that is over, and may be started once."""
    monkeypatch.setattr("os.getpid", lambda: 2)
    monkeypatch.setattr("os.getppid", lambda: 1)
    between = _between()
    assert (False, True) == (between.may_begin(draining=False, busy=True), between.deferred)
    assert (True, False) == (between.may_begin(draining=False, busy=False), between.deferred)


def test_reload_waits() -> None:
    """A reload that is asked for beside an older master is due once, when that has ended."""
    between = _between(predecessor=8)
    assert between.defer_reload()
    assert not between.take_reload()
    between.predecessor.gone = True
    assert [True, False] == [between.take_reload() for _ in range(2)]
    assert not between.defer_reload()
    assert not between.take_reload()


def test_told_to_end_with_its_successor() -> None:
    """A server that is told to end while a new master serves, which ends with it, has nobody who serves on at its sockets."""
    between = _between()
    between.board.enter(Phase.HANDED_OVER)
    assert between.others_serve

    between.successor.ending = True
    assert not between.others_serve


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pid": 1}, "this master was started from outside its container, whose end its own may be"),
        ({"parent": 0}, "this master was started from outside its container, whose end its own may be"),
        ({"successor": 7}, r"a new master \(7\) is under way"),
        ({"predecessor": 8}, r"the master before this one \(8\) has not ended yet"),
        ({"draining": True}, "the server is going away"),
    ],
)
def test_may_not(fields: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where a hand-over can't go well, USR2 is refused in one line, and not put off until a reload is over."""
    between = _between(fields.get("successor", 0), fields.get("predecessor", 0))
    monkeypatch.setattr("os.getpid", lambda: fields.get("pid", 2))
    monkeypatch.setattr("os.getppid", lambda: fields.get("parent", 1))
    assert not between.may_begin(draining=fields.get("draining", False), busy=True)
    assert not between.deferred
    assert re.search(f"^USR2 was refused: {why}", caplog.messages[-1])
    assert between.words.reasons == caplog.messages[-1:]
