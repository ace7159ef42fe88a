"""The master's books: who is forked for what, who leaves, and how many gunicorn is told to keep."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.barrier import Point
from server.exits import ResourceError
from server.master import placement, roster
from server.master.handover import HandOver
from server.master.workforce import NVML_REST
from server.scoreboard import NEVER, pack
from server.states import BOOTING, Event, Role, State
from tests.unit.books import MOST, Start, opened


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes a server that has settled."""
    with opened() as start:
        yield start


def test_promote(start: Start) -> None:
    """The place of a worker that ended goes to one of the warm pool, and the next that is forked is held back."""
    server = start(active=1, standby=1)
    first, second = server.workers

    server.end(first)

    assert Role.ACTIVE is server.role(second)
    server.fill()
    assert Role.STANDBY is server.role(server.workers[-1])


def test_shrink(start: Start) -> None:
    """The newest active worker leaves, but nobody does where a place is empty anyway."""
    server = start(active=3, standby=1)
    server.resize(2)
    assert [3] == server.signalled()
    assert 4 == server.succession.places
    server.settle()

    server.end(server.workers[0], signal.SIGKILL)  # the warm pool takes its place
    server.resize(1)

    assert [Role.ACTIVE, Role.ACTIVE] == [server.role(each) for each in server.workers]
    assert 1 == len(server.signalled())
    server.settle()
    assert (2, 2) == (server.succession.places, len(server.workers))


def test_shrink_takes_who_boots_first(start: Start) -> None:
    """Of an open worker and an older one that still boots it is the latter that leaves: it may never open."""
    server = start(active=1)
    server.resize(2)
    late = server.fork()
    server.resize(3)
    server.go(server.fork())
    server.workforce.newly_open()

    server.resize(2)

    assert [late.age] == server.signalled()


@pytest.mark.parametrize("standby", [0, 1])
def test_spent(start: Start, standby: int) -> None:
    """A worker that has served enough is told to leave once another takes traffic in its place, and not before."""
    server = start(active=1, standby=standby)
    (old,) = [worker for worker in server.workers if server.role(worker) is Role.ACTIVE]
    server.board.slots["spent"][server.slot(old)] = 1
    assert server.workforce.notice()
    assert not server.workforce.notice()
    server.workforce.promote(server.succession.serving)
    assert 2 + standby == server.succession.places

    server.succession.tick()
    assert [] == server.signalled()
    for worker in server.workers:
        server.go(worker)
    server.fill()
    server.succession.tick()
    assert [old.age] * standby == server.signalled()

    server.settle()
    assert old not in server.workers
    assert 1 + standby == len(server.workers) == server.succession.places
    assert not server.workforce.slots.missed


def test_spent_in_a_reload_one_by_one(start: Start) -> None:
    """A new worker that has served enough while the others of its generation still come holds up nobody: one is kept for it."""
    server = start(active=2)
    server.beside = 1
    server.reload()
    while server.succession.serving.number == 1:
        server.turn()
    server.turn()
    (new,) = [worker for worker in server.workers if server.board.slots["generation"][server.slot(worker)] == 2]
    assert State.ACTIVE is server.board.state(server.slot(new))
    server.board.slots["spent"][server.slot(new)] = 1

    server.settle()

    assert not server.succession.busy
    assert new not in server.workers
    assert [2, 2] == [server.board.slots["generation"][server.slot(worker)] for worker in server.workers]


def test_leaves_unasked(start: Start) -> None:
    """The place of a worker that somebody else has told to leave is the warm pool's at once, and is filled while it finishes."""
    server = start(active=1, standby=1)
    old, standby = sorted(server.workers, key=lambda worker: server.role(worker) is Role.STANDBY)
    server.board.move(server.slot(old), Event.LEAVE)

    assert server.workforce.notice()
    server.workforce.promote(server.succession.serving)

    assert Role.ACTIVE is server.role(standby)
    assert 3 == server.succession.places
    server.fill()
    assert Role.STANDBY is server.role(server.workers[-1])
    server.end(old, 0)
    assert (2, 2) == (server.succession.places, len(server.workers))


def test_who_leaves_stands_for_nobody(start: Start) -> None:
    """A worker that is told to leave, and has not yet, is not counted for an older one that serves beside it."""
    server = start(active=1)
    (old,) = server.workers
    server.reload()
    server.turn()
    new = server.workers[-1]
    server.turn()
    server.go(new)
    assert State.ACTIVE is server.board.state(server.slot(new))

    server.board.slots["leave"][server.slot(new)] = 1
    server.succession.tick()
    assert [] == old.signals
    server.board.slots["leave"][server.slot(new)] = 0
    server.succession.tick()
    assert [signal.SIGTERM] == old.signals


def test_not_forked(start: Start) -> None:
    """What was assigned to a worker that could not be forked is given back."""
    server = start(active=2)
    server.end(server.workers[0])
    worker = server.fork()
    taken = server.slot(worker)
    server.workers.remove(worker)
    worker.unborn = True

    server.workforce.withdraw()

    assert State.EMPTY is server.board.state(taken)
    assert 2 == server.succession.places
    server.fill()
    assert taken == server.slot(server.workers[-1])


def test_shrunk_instead_of_replaced(start: Start) -> None:
    """A place that a TTOU has taken away is not missed: who is asked for later joins the others like anybody."""
    server = start(active=2)
    server.end(server.workers[0])

    server.resize(1)
    server.resize(2)

    server.fill()
    assert [False, False] == [bool(server.board.slots["missed"][server.slot(each)]) for each in server.workers]


def test_shrink_takes_a_refused_fork_first(start: Start) -> None:
    """A fork that was refused and has not left yet is one too many as any: gunicorn must not have to pick."""
    server = start(active=3)
    server.end(server.workers[-1])
    server.unsafe = "a thread"
    server.fill()
    server.unsafe = ""
    assert server.workforce.assignments[server.workers[-1]].refused

    server.resize(2)

    assert [4] == server.signalled()
    server.fill()
    server.settle()
    assert [1, 2] == [each.age for each in server.workers]


@pytest.mark.parametrize(
    ("state", "how", "retired", "failures"),
    [
        *((state, signal.SIGSEGV, False, 1) for state in (*BOOTING, State.FAILED)),
        *((state, signal.SIGSEGV, False, 1) for state in (State.ACTIVE, State.STANDBY)),
        *((state, signal.SIGKILL, False, 0) for state in (State.ACTIVE, State.STANDBY)),
        (State.DRAINING, signal.SIGSEGV, False, 0),
        (State.WARMING, signal.SIGTERM, False, 0),
        (State.WARMING, signal.SIGKILL, True, 0),
        (State.FAILED, 70, True, 0),
        (None, 0, False, 1),
        (None, signal.SIGKILL, True, 0),
    ],
)
def test_what_counts_as_a_failed_boot(start: Start, state: State | None, how: int, *, retired: bool, failures: int) -> None:
    """An end by itself before the door was open or just after, or a fork refused; none that came from outside, whoever it was."""
    server = start(active=1)
    server.end(server.workers[0], signal.SIGTERM)  # another has its place
    server.unsafe = "" if state else "a thread"
    worker = server.fork()
    server.workforce.slots.backoff.forget()
    if state:
        server.board.slots["word"][server.slot(worker)] = pack(state, NEVER)
    if retired:
        server.workforce.retire(server.succession.serving, signal.SIGKILL)

    server.end(worker, how)

    assert failures == server.workforce.slots.backoff.failures[0]
    assert not server.workforce.assignments


def test_crashes_as_soon_as_it_is_open(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replacement that crashes when it has just opened makes the next wait longer; one that was open for long does not."""
    server = start(active=1)
    waits = []
    for _ in range(4):
        server.end(server.workers[0], signal.SIGSEGV)
        server.fill()
        waits.append(server.workforce.assignments[server.workers[0]].backoff)
        server.turn()
    assert [1, 2, 4, 8] == waits

    monkeypatch.setattr(roster, "FRESH_SECONDS", 0.0)
    server.end(server.workers[0], signal.SIGSEGV)

    assert 0 == server.workforce.slots.backoff.failures[0]


def test_crashes_together(start: Start) -> None:
    """Workers that crash of the same volley are one failure, however many there are: those in their places wait a second."""
    server = start(active=4)
    for worker in list(server.workers):
        server.end(worker, signal.SIGSEGV)
    server.fill()

    assert [1, 1, 1, 1] == [server.workforce.assignments[worker].backoff for worker in server.workers]


def test_fresh_once_it_takes_traffic(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that has waited for long and crashes at its first requests counts like one that has just opened."""
    server = start(active=1, standby=1)
    active, standby = sorted(server.workers, key=server.role)
    if server.role(active) is Role.STANDBY:
        active, standby = standby, active
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert not server.workforce.assignments[standby].fresh

    server.end(active)
    server.turn()

    assert server.role(standby) is Role.ACTIVE
    assert server.workforce.assignments[standby].fresh


@pytest.mark.parametrize("proven", [False, True])
def test_the_pool_before_who_still_boots(start: Start, *, proven: bool) -> None:
    """A warm standby takes the place of a worker that still boots, which fills the pool then; one that is proven keeps it."""
    server = start(active=1, standby=1)
    first, pool = sorted(server.workers, key=server.role)
    server.end(first if server.role(first) is Role.STANDBY else pool)
    server.fill()
    refill = server.workers[-1]
    (active,) = [each for each in server.workers if each is not refill]
    server.end(active)
    server.fill()
    late = server.workers[-1]
    assert (Role.STANDBY, Role.ACTIVE) == (server.role(refill), server.role(late))
    if proven:
        server.board.slots["barrier"][server.slot(late)] = Point.PROVEN

    server.go(refill)
    server.resize(1)
    server.workforce.promote(server.succession.serving)

    assert ((Role.STANDBY, Role.ACTIVE) if proven else (Role.ACTIVE, Role.STANDBY)) == (server.role(refill), server.role(late))
    server.settle()
    assert sorted([Role.ACTIVE, Role.STANDBY]) == sorted(server.role(each) for each in server.workers)
    assert {State.ACTIVE, State.STANDBY} == {server.board.state(server.slot(each)) for each in server.workers}


@pytest.mark.parametrize("polite", [False, True])
def test_behind_others_until_it_serves(start: Start, *, polite: bool) -> None:
    """A server that is told of others is behind them until it serves, and behind nobody if its last worker dies later."""
    master = start(active=1).master
    master.settings, master.served = replace(master.settings, polite=polite), False
    master.hand_over = HandOver(master.board, master.settings, master.words, None)
    assert polite == master.behind

    master.served = True

    assert not master.behind


STEPS = st.lists(st.sampled_from(["grow", "shrink", "fork", "boot", "end", "refuse", "reload", "tick", "turn"]), max_size=40)


@given(steps=STEPS, data=st.data(), standby=st.integers(0, 2), quorum=st.integers(0, 2), beside=st.integers(0, 1))
@settings(max_examples=250, deadline=None)
def test_target_is_always_met(steps: list[str], data: st.DataObject, standby: int, quorum: int, beside: int) -> None:
    """Whatever happens in whatever order, gunicorn never has one too many, and in the end there are as many as should be."""
    with opened() as start:
        server = start(active=2, standby=standby, quorum=quorum)
        server.beside = beside
        for step in steps:
            match step:
                case "grow" | "shrink":
                    server.resize(min(max(server.board.get("active") + (1 if step == "grow" else -1), 1), MOST))
                case "fork" | "refuse":
                    server.unsafe = "a thread" if step == "refuse" else ""
                    server.fill()
                    server.unsafe = ""
                case "boot" | "end" if server.workers:
                    worker = data.draw(st.sampled_from(server.workers))
                    if step == "end":
                        server.end(worker)
                    elif server.workforce.assignments[worker].slot is not None:
                        server.go(worker)
                case "reload":
                    server.reload()
                case "tick":
                    server.succession.tick()
                case "turn":
                    server.turn()
            assert len(server.workers) <= server.succession.places
        server.settle()

        active = server.board.get("active")
        roles = [server.role(worker) for worker in server.workers]
        assert active + standby == server.succession.places == len(server.workers)
        assert (active, standby) == (roles.count(Role.ACTIVE), roles.count(Role.STANDBY))
        assert not server.signalled()
        assert server.succession.serving
        assert {server.succession.serving} == {each.generation for each in server.workforce.assignments.values()}
        assert [server.succession.serving.number] == list(server.succession.words.generations)


def test_room_for_one_more(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs one more worker is asked for of each generation, beside those that are still to be forked; else nobody is asked."""
    asked: list[int] = []
    server = start(active=3)
    server.workforce.expect_room(server.succession.serving)
    monkeypatch.setattr(server.workforce, "gpu_room", lambda _generation: SimpleNamespace(expect=asked.append))
    server.workforce.expect_room()
    server.workforce.expect_room(server.succession.serving)
    server.end(server.workers[0])
    server.workforce.expect_room(server.succession.serving)
    server.workforce.expect_room(server.succession.serving, server.built())
    assert [1, 2, 2 + 4] == asked


def test_nvml_is_silent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML that has kept the master waiting is let be for a while, and then asked again; one that says no is asked each time."""
    server, now, asked = start(active=1), 1000.0, []
    generation = server.built()
    monkeypatch.setattr(type(generation), "on_gpu", True)
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def find(seconds: float, takes: float = 1.0) -> NoReturn:
        nonlocal now
        asked.append(seconds)
        now += takes * seconds
        message = f"asked {len(asked)} times"
        raise ResourceError(message)

    monkeypatch.setattr(placement, "find", find)
    for pause, words in ((0, "asked 1"), (10, f"silent, and is asked again in {NVML_REST - 10:.0f} s"), (NVML_REST, "asked 2")):
        now += pause
        with pytest.raises(ResourceError, match=words):
            server.workforce.gpu_room(generation)

    now += NVML_REST
    monkeypatch.setattr(placement, "find", partial(find, takes=0.5))
    for words in ("asked 3", "asked 4"):
        with pytest.raises(ResourceError, match=words):
            server.workforce.gpu_room(generation)
