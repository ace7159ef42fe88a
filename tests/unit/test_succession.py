"""One generation follows another: who opens it, who leaves for whom, and what is left of one that is refused."""

from __future__ import annotations

import gc
import signal
import sys
import weakref
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from server.exits import ResourceError
from server.master import succession
from server.states import Phase, Role, State
from tests.unit.books import MOST, Start, opened


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes a server that has settled."""
    with opened() as start:
        yield start


def holding(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """What a generation has of a model whose Python is `name` among the modules, until it is let go."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return SimpleNamespace(finding=SimpleNamespace(private_bytes=0), python=SimpleNamespace(name=name), on_gpu=False)


def test_places(start: Start) -> None:
    """A place for each worker of each generation, and one for each that leaves until it has left."""
    server = start(active=2, standby=1)
    assert (3, 3) == (server.succession.places, len(server.workers))

    server.reload()
    server.turn()
    assert (6, 6) == (server.succession.places, len(server.workers))
    assert [1, 1, 1, 2, 2, 2] == [server.workforce.assignments[each].generation.number for each in server.workers]
    assert not server.signalled()
    server.turn()

    assert server.signalled()
    assert 6 == server.succession.places
    server.settle()
    assert (3, [4, 5, 6]) == (server.succession.places, [each.age for each in server.workers])
    assert (2, Phase.SERVING) == (server.board.get("generation"), server.board.phase)


def test_no_place_without_a_slot(start: Start) -> None:
    """Many leave two generations, as many are wanted again at once: they wait for the slots of those, and nobody is refused."""
    server = start(active=MOST)
    server.reload()
    server.turn()
    assert 2 * MOST == len(server.workers)

    server.resize(1)
    server.resize(MOST)
    server.fill()
    assert 2 * MOST == len(server.workers)
    server.settle()

    assert (2, []) == (server.board.get("generation"), server.succession.words.reasons)
    assert MOST == len(server.workers)


def test_give_up(start: Start) -> None:
    """A generation that loses a worker goes as a whole, whose places go with it; what serves is not touched."""
    server = start(active=2)
    server.reload()
    server.turn()

    server.end(server.workers[-1])

    assert ([3], 3) == (server.signalled(), server.succession.places)
    server.settle()
    assert ([1, 2], 2) == ([each.age for each in server.workers], server.succession.places)
    assert "generation 2 was refused" in server.succession.words.reasons[0]
    assert [1] == list(server.succession.words.generations)


def test_cast(start: Start) -> None:
    """Those that got there first take traffic, also where they were forked to be held back."""
    server = start(active=1, standby=1, quorum=1, settled=False)
    server.fill()
    first, second = server.workers
    assert [Role.ACTIVE, Role.STANDBY] == [server.role(first), server.role(second)]
    server.go(second)

    server.succession.tick()

    assert [Role.STANDBY, Role.ACTIVE] == [server.role(first), server.role(second)]
    assert 1 == server.board.get("generation")


def test_relieve(start: Start) -> None:
    """Of the old workers as many stay, the newest, as new ones are missing that take traffic."""
    server = start(active=3, quorum=1)
    server.reload()
    server.turn()
    old, new = server.workers[:3], server.workers[3:]

    for count, told in enumerate(([], [1], [1, 2], [1, 2, 3])):
        for worker in new[:count]:
            server.go(worker)
        server.succession.tick()  # opens the generation at the first
        for worker in new[:count]:
            server.go(worker)
        server.succession.tick()
        assert told == server.signalled()
    assert all([signal.SIGTERM] == worker.signals for worker in old)


def test_relieve_keeps_those_that_take_traffic(start: Start) -> None:
    """An old worker that is held back is no stand-in for a new one that is missing: it goes first, though it is newer."""
    server = start(active=2, standby=2, quorum=1)
    server.reload()
    server.turn()
    active = [each.age for each in server.workers[:4] if server.role(each) is Role.ACTIVE]

    server.go(server.workers[4])
    server.succession.tick()

    assert 2 == server.board.get("generation")
    assert not set(active) & set(server.signalled())


def test_one_by_one(start: Start) -> None:
    """Where memory will not hold two generations, there is at most one worker more, and each old one goes for a new one."""
    server = start(active=3, standby=1)
    server.beside = 1
    server.reload()
    seen = set()
    for _ in range(30):
        server.turn()
        numbers = [server.workforce.assignments[each].generation.number for each in server.workers]
        assert len(numbers) <= 5
        active = sum(server.board.state(server.slot(each)) is State.ACTIVE for each in server.workers)
        assert active >= 3
        seen.add((numbers.count(1), numbers.count(2)))
    assert {(4, 1), (3, 2), (1, 4), (0, 4)} <= seen
    assert (2, False, None) == (server.board.get("generation"), server.succession.one_by_one, server.succession.replaced)
    assert [2] == list(server.succession.words.generations)


def test_nobody_holds_what_is_collected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the master looks through its heap, nothing of it holds the models that have gone, also after one by one."""
    server = start(active=2)
    server.beside = 1
    monkeypatch.setattr(server.succession.words, "publish", lambda: None)
    old = server.succession.serving
    old.holdings.append(holding(monkeypatch, "old"))
    gone = weakref.ref(old)
    held: list[bool] = []

    def clear_heap() -> None:
        gc.collect()
        held.append(gone() is not None)

    monkeypatch.setattr(succession, "clear_heap", clear_heap)
    del old
    server.reload()

    for _ in range(30):
        server.turn()

    assert held == [False]


def test_one_by_one_is_taken_back(start: Start) -> None:
    """If one fails on the way, the old generation takes over again, one by one too, and is refilled from its models."""
    server = start(active=3)
    server.beside = 1
    server.reload()
    while len([each for each in server.workers if server.workforce.assignments[each].generation.number == 1]) > 1:
        server.turn()
    server.fill()
    (booting,) = [each for each in server.workers if server.board.state(server.slot(each)) is State.FORKED]

    server.end(booting, signal.SIGKILL)

    assert 1 == server.board.get("generation")
    assert "generation 2 was refused" in server.succession.words.reasons[0]
    for _ in range(20):
        server.turn()
        assert len(server.workers) <= 4
        assert sum(server.board.state(server.slot(each)) is State.ACTIVE for each in server.workers) >= 3 - 1
    assert [1, 1, 1] == [server.workforce.assignments[each].generation.number for each in server.workers]
    assert (1, False) == (server.board.get("generation"), server.succession.one_by_one)
    assert [1] == list(server.succession.words.generations)


def test_nothing_is_left_of_what_is_taken_back(start: Start) -> None:
    """Also when the worker that failed was the last of its generation, the books forget that."""
    server = start(active=3)
    server.beside = 1
    server.reload()
    for _ in range(4):
        server.turn()
    opened, booting = [each for each in server.workers if server.workforce.assignments[each].generation.number == 2]
    states = [server.board.state(server.slot(each)) for each in (opened, booting)]
    assert [State.ACTIVE, State.FORKED] == states
    server.end(opened, signal.SIGKILL)

    server.end(booting, signal.SIGKILL)

    assert [1] == list(server.succession.words.generations)
    assert 1 == server.board.get("generation")


@pytest.mark.parametrize("new", [False, True])
def test_collects_only_what_has_gone(start: Start, monkeypatch: pytest.MonkeyPatch, *, new: bool) -> None:
    """The master looks through its heap, which takes long, when a model has gone, not when the next generation has them all."""
    collected = []
    monkeypatch.setattr(succession, "clear_heap", lambda: collected.append(1))
    server = start(active=1)
    monkeypatch.setattr(server.succession.words, "publish", lambda: None)
    models = [holding(monkeypatch, "kept"), holding(monkeypatch, "old")]
    server.succession.serving.holdings[:] = models
    server.reload()
    server.succession.built.holdings[:] = [models[0], holding(monkeypatch, "new") if new else models[1]]

    server.settle()

    assert (2, [2]) == (server.board.get("generation"), list(server.succession.words.generations))
    assert new == bool(collected)
    assert [True, not new] == [name in sys.modules for name in ("kept", "old")]


def test_keeps_what_another_has_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken back leaves the models that the next generation has kept of it, and lets go of the rest, as refusals do."""
    server = start(active=2)
    server.beside = 1
    monkeypatch.setattr(server.succession.words, "publish", lambda: None)
    server.reload()
    made = [holding(monkeypatch, "kept"), holding(monkeypatch, "gone")]
    server.succession.built.holdings[:] = made
    server.turn()
    server.turn()
    server.reload()
    server.succession.built.holdings[:] = [made[0], holding(monkeypatch, "new")]

    server.end(server.workers[-1])

    assert 1 == server.board.get("generation")
    assert [True, False, True] == [name in sys.modules for name in ("kept", "gone", "new")]
    server.succession.refuse(ResourceError("no memory"))
    assert [False, False] == [name in sys.modules for name in ("kept", "new")]


def test_waits_for_room(start: Start) -> None:
    """A third generation does not boot while the first still has workers: there are slots for two."""
    server = start(active=2, quorum=1)
    server.reload()
    server.turn()
    server.go(server.workers[2])
    server.succession.tick()
    server.reload()

    server.succession.tick()

    assert server.succession.built
    assert server.succession.coming is None
    server.settle()
    assert (3, [5, 6]) == (server.board.get("generation"), [each.age for each in server.workers])


def test_not_forgotten_while_it_may_take_over_again(start: Start) -> None:
    """An old generation is not forgotten with its last worker while it may take over again from one that opens one by one."""
    server = start(active=2)
    server.beside = 1
    server.reload()
    server.turn()
    first, second, new = server.workers
    server.go(new)
    server.end(first)
    server.end(second)
    server.succession.tick()
    assert 2 == server.board.get("generation")

    server.end(new)

    assert 1 == server.board.get("generation")
    assert [1] == list(server.succession.words.generations)
    server.settle()
    assert [1, 1] == [server.workforce.assignments[each].generation.number for each in server.workers]


def test_shrunk_before_it_takes_over_again(start: Start) -> None:
    """What takes over again has as many workers as there should be now, not as there should have been when it left off."""
    server = start(active=2)
    server.beside = 1
    server.reload()
    server.turn()
    server.turn()
    new = server.workers[-1]
    assert (2, State.WAITING) == (server.board.get("generation"), server.board.state(server.slot(new)))
    server.resize(1)

    server.end(new)

    server.settle()
    assert [1] == [server.workforce.assignments[each].generation.number for each in server.workers]
    assert 1 == server.succession.places
