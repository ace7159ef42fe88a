"""The master's books: who is forked for what, who leaves for whom, and how many gunicorn is told to keep."""

from __future__ import annotations

import gc
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.barrier import Point
from server.exits import ExitError
from server.master import succession
from server.master import workforce as module
from server.master.losses import Losses
from server.master.master import Master
from server.master.slots import Slots
from server.master.succession import Succession
from server.master.words import Words
from server.master.workforce import Workforce
from server.models.generation import Generation
from server.scoreboard import NEVER, Scoreboard, pack
from server.settings import Settings
from server.states import BOOTING, Event, Phase, Role, State

MOST = 5
WAY = (Event.LOAD, Event.WARM, Event.PROVE, Event.ARRIVE)


@dataclass(eq=False)
class Worker:
    """What the books see of gunicorn's worker; its pid is its age."""

    age: int
    signals: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """A pid that is nobody's."""
        return self.age


class Server:
    """The books around workers that are not there, and of gunicorn what forks and ends them."""

    def __init__(self, active: int = 2, standby: int = 0, quorum: int = 0) -> None:
        """A first generation whose workers are still to be forked."""
        environ = {"WORKERS": active, "MAX_WORKERS": MOST, "STANDBY": standby} | ({"READY_QUORUM": quorum} if quorum else {})
        read = Settings.read({f"WARMFORK_{name}": str(value) for name, value in environ.items()})
        self.board = Scoreboard.create(2 * (MOST + standby))
        self.board.set("active", active)
        self.board.set("standby", standby)
        self.workforce = Workforce(self.board, Slots(self.board, 10), read)
        self.succession = Succession(read, self.workforce, Words(self.board), lambda: None)
        self.master = Master.__new__(Master)  # without a page of its own, and without the process that answers the probes
        self.master.board, self.master.settings = self.board, read
        self.master.workforce, self.master.succession = self.workforce, self.succession
        self.master.words = self.succession.words
        self.master.losses = Losses(self.succession, self.halt)
        self.workers: list[Worker] = []
        self.unsafe = ""
        self.beside = 0
        """How many workers memory has room for beside a generation; 0 for as many as there are."""
        self.age = 0
        self.succession.boot(self.built())

    def halt(self, error: ExitError) -> NoReturn:
        """What none of these tests is about."""
        raise AssertionError(error)

    def built(self) -> Generation:
        """A generation whose models are loaded."""
        self.succession.begun += 1
        return Generation(self.succession.begun)

    def reload(self) -> None:
        """A generation is complete, while another serves."""
        if not self.succession.making:
            self.succession.built = self.built()

    def kill(self, pid: int, number: int) -> None:
        """Note a signal; a pid that was not there raises."""
        (worker,) = [each for each in self.workers if each.pid == pid]
        worker.signals.append(number)

    def fork(self) -> Worker:
        """One worker more, for whatever wants it most."""
        self.age += 1
        worker = Worker(self.age)
        generation = self.succession.short_of()
        assert generation
        self.workforce.assign(worker, generation)
        self.workers.append(worker)
        return worker

    def fill(self) -> None:
        """Do as gunicorn does: fork up to its number, and never have more, or it would end the oldest."""
        assert len(self.workers) <= self.succession.places
        while len(self.workers) < self.succession.places:
            self.fork()

    def end(self, worker: Worker, how: signal.Signals | int = signal.SIGKILL) -> None:
        """A worker ends; what follows is what the master does."""
        self.workers.remove(worker)
        self.master.ended(worker, how)

    def go(self, worker: Worker, *, opened: bool = True) -> None:
        """A worker boots as far as its barrier, and through it where it may."""
        slot = self.slot(worker)
        if self.board.state(slot) is State.FORKED:
            for event in WAY:
                self.board.move(slot, event)
            self.board.slots["barrier"][slot] = Point.REHEARSED
        number = self.workforce.assignments[worker].generation.number
        if opened and self.board.get("generation") >= number and not self.board.slots["leave"][slot]:
            state, role = self.board.state(slot), Role(int(self.board.slots["role"][slot]))
            if state is State.WAITING:
                self.board.move(slot, Event.OPEN if role is Role.ACTIVE else Event.HOLD)
            elif state is State.STANDBY and role is Role.ACTIVE:
                self.board.move(slot, Event.OPEN)

    def slot(self, worker: Worker) -> int:
        """The slot that a worker has."""
        slot = self.workforce.assignments[worker].slot
        assert slot is not None
        return slot

    def role(self, worker: Worker) -> Role:
        """The role that a worker has."""
        return Role(int(self.board.slots["role"][self.slot(worker)]))

    def resize(self, active: int) -> None:
        """TTIN and TTOU."""
        grows = active > self.board.get("active")
        self.board.set("active", active)
        for generation in (self.succession.serving, self.succession.coming):
            if generation:
                (self.workforce.promote if grows else self.workforce.shrink)(generation)

    def turn(self) -> None:
        """Let everything happen that is due: ends that were asked for, boots, the loop of the master, forks."""
        for worker in list(self.workers):
            if worker.signals or self.workforce.assignments[worker].slot is None:
                self.end(worker, signal.SIGTERM)
        for worker in self.workers:
            if self.workforce.assignments[worker].slot is not None:
                self.go(worker)
        self.workforce.newly_open()
        self.succession.tick()
        self.fill()

    def settle(self) -> None:
        """Let everything come to its end."""
        for _ in range(12):
            self.turn()

    def close(self) -> None:
        """Close what the barrier has open."""
        for slot in list(self.workforce.slots.barrier.bells):
            self.workforce.slots.barrier.drop(slot)

    def signalled(self) -> list[int]:
        """The ages of those who were told to leave."""
        return [worker.age for worker in self.workers if worker.signals]


@pytest.fixture(scope="module", autouse=True)
def heap() -> Iterator[None]:
    """The heap of the tests is not frozen before forks that there are not: what hangs together in it would stay for ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(succession, "settle_heap", lambda: None)
        yield


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Signals go to the server at hand, and what makes a fork unsafe is what a test says."""
    at = SimpleNamespace(server=None, unsafe="")
    monkeypatch.setattr(module, "unsafe", lambda: at.unsafe)
    room = SimpleNamespace(beside=lambda wanted: at.server.beside or wanted)
    monkeypatch.setattr(succession, "Room", lambda *_: room)
    monkeypatch.setattr(module, "os", SimpleNamespace(kill=lambda *given: cast("Server", at.server).kill(*given)))
    return at


@pytest.fixture
def start(fakes: SimpleNamespace) -> Any:
    """Make a server; it has settled unless that is not wanted."""

    def make(*, settled: bool = True, **given: int) -> Server:
        fakes.server = Server(**given)
        if settled:
            fakes.server.settle()
        return cast("Server", fakes.server)

    return make


def test_places(start: Any) -> None:
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


def test_give_up(start: Any) -> None:
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


def test_cast(start: Any) -> None:
    """Those that got there first take traffic, also where they were forked to be held back."""
    server = start(active=1, standby=1, quorum=1, settled=False)
    server.fill()
    first, second = server.workers
    assert [Role.ACTIVE, Role.STANDBY] == [server.role(first), server.role(second)]
    server.go(second)

    server.succession.tick()

    assert [Role.STANDBY, Role.ACTIVE] == [server.role(first), server.role(second)]
    assert 1 == server.board.get("generation")


def test_relieve(start: Any) -> None:
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


def test_relieve_keeps_those_that_take_traffic(start: Any) -> None:
    """An old worker that is held back is no stand-in for a new one that is missing: it goes first, though it is newer."""
    server = start(active=2, standby=2, quorum=1)
    server.reload()
    server.turn()
    active = [each.age for each in server.workers[:4] if server.role(each) is Role.ACTIVE]

    server.go(server.workers[4])
    server.succession.tick()

    assert 2 == server.board.get("generation")
    assert not set(active) & set(server.signalled())


def test_one_by_one(start: Any) -> None:
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


def test_nobody_holds_what_is_collected(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the master looks through its heap, nothing of it holds the models that have gone, also after one by one."""
    server = start(active=2)
    server.beside = 1
    monkeypatch.setattr(server.succession.words, "publish", lambda: None)
    old = server.succession.serving
    old.holdings.append(SimpleNamespace(finding=object()))
    gone = weakref.ref(old)
    held: list[bool] = []

    def settle_heap() -> None:
        gc.collect()
        held.append(gone() is not None)

    monkeypatch.setattr(succession, "settle_heap", settle_heap)
    del old
    server.reload()

    for _ in range(30):
        server.turn()

    assert held == [False]


def test_one_by_one_is_taken_back(start: Any) -> None:
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


def test_nothing_is_left_of_what_is_taken_back(start: Any) -> None:
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
def test_collects_only_what_has_gone(start: Any, monkeypatch: pytest.MonkeyPatch, *, new: bool) -> None:
    """The master looks through its heap, which takes long, when a model has gone, not when the next generation has them all."""
    collected = []
    monkeypatch.setattr(succession, "settle_heap", lambda: collected.append(1))
    server = start(active=1)
    monkeypatch.setattr(server.succession.words, "publish", lambda: None)
    models = [SimpleNamespace(finding=object()), SimpleNamespace(finding=object())]
    server.succession.serving.holdings[:] = models
    server.reload()
    server.succession.built.holdings[:] = [models[0], SimpleNamespace(finding=object() if new else models[1].finding)]

    server.settle()

    assert (2, [2]) == (server.board.get("generation"), list(server.succession.words.generations))
    assert new == bool(collected)


def test_waits_for_room(start: Any) -> None:
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


def test_promote(start: Any) -> None:
    """The place of a worker that ended goes to one of the warm pool, and the next that is forked is held back."""
    server = start(active=1, standby=1)
    first, second = server.workers

    server.end(first)

    assert Role.ACTIVE is server.role(second)
    server.fill()
    assert Role.STANDBY is server.role(server.workers[-1])


def test_shrink(start: Any) -> None:
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


def test_shrink_takes_a_refused_fork_first(start: Any, fakes: SimpleNamespace) -> None:
    """A fork that was refused and has not left yet is one too many as any: gunicorn must not have to pick."""
    server = start(active=3)
    server.end(server.workers[-1])
    fakes.unsafe = "a thread"
    server.fill()
    fakes.unsafe = ""
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
        *((state, signal.SIGSEGV, False, 0) for state in (State.ACTIVE, State.STANDBY, State.DRAINING)),
        (State.WARMING, signal.SIGTERM, False, 0),
        (State.WARMING, signal.SIGKILL, True, 0),
        (State.FAILED, 70, True, 0),
        (None, 0, False, 1),
        (None, signal.SIGKILL, True, 0),
    ],
)
def test_what_counts_as_a_failed_boot(
    start: Any, fakes: SimpleNamespace, state: State | None, how: int, *, retired: bool, failures: int
) -> None:
    """An end by itself before the door was open, or a fork refused; no end that somebody asked for, whoever it was."""
    server = start(active=1)
    server.end(server.workers[0], signal.SIGTERM)  # another has its place
    fakes.unsafe = "" if state else "a thread"
    worker = server.fork()
    server.workforce.slots.failures = 0
    if state:
        server.board.slots["word"][server.slot(worker)] = pack(state, NEVER)
    if retired:
        server.workforce.retire(server.succession.serving, signal.SIGKILL)

    server.end(worker, how)

    assert failures == server.workforce.slots.failures
    assert not server.workforce.assignments


STEPS = st.lists(st.sampled_from(["grow", "shrink", "fork", "boot", "end", "refuse", "reload", "tick", "turn"]), max_size=40)


@given(steps=STEPS, data=st.data(), standby=st.integers(0, 2), quorum=st.integers(0, 2), beside=st.integers(0, 1))
@settings(max_examples=250, deadline=None)
def test_target_is_always_met(steps: list[str], data: st.DataObject, standby: int, quorum: int, beside: int) -> None:
    """Whatever happens in whatever order, gunicorn never has one too many, and in the end there are as many as should be."""
    with pytest.MonkeyPatch.context() as patch:
        server = Server(2, standby, quorum)
        server.beside = beside
        patch.setattr(succession, "Room", lambda *_: SimpleNamespace(beside=lambda wanted: beside or wanted))
        patch.setattr(module, "os", SimpleNamespace(kill=server.kill))
        patch.setattr(module, "unsafe", lambda: server.unsafe)
        server.settle()
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
        server.close()
