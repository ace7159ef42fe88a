"""The master's books around workers that are not there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from server.barrier import Point
from server.exits import ExitError
from server.master import succession, workforce
from server.master.losses import Losses
from server.master.master import Master
from server.master.slots import Slots
from server.master.succession import Succession
from server.master.words import Words
from server.master.workforce import Workforce
from server.models.generation import Generation
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Event, Role, State

MOST = 5
WAY = (Event.LOAD, Event.WARM, Event.PROVE, Event.ARRIVE)


@dataclass(eq=False)
class Worker:
    """What the books see of gunicorn's worker; its pid is its age, once it is forked."""

    age: int
    signals: list[int] = field(default_factory=list)
    unborn: bool = False

    @property
    def pid(self) -> int | str:
        """A pid that is nobody's; before the fork what gunicorn says."""
        return "[booting]" if self.unborn else self.age


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
        """What makes a fork unsafe."""
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
        if self.workforce.notice() and self.succession.serving:
            self.workforce.promote(self.succession.serving)
        if self.workforce.newly_open() and self.succession.serving:
            self.workforce.promote(self.succession.serving)
        self.succession.tick()
        self.fill()

    def settle(self) -> None:
        """Let everything come to its end: two generations may still have to take over, two turns for each of their workers."""
        for _ in range(4 * (MOST + self.board.get("standby") + 1)):
            self.turn()

    def close(self) -> None:
        """Close what the barrier has open."""
        for slot in list(self.workforce.slots.barrier.bells):
            self.workforce.slots.barrier.drop(slot)

    def signalled(self) -> list[int]:
        """The ages of those who were told to leave."""
        return [worker.age for worker in self.workers if worker.signals]


Start = Callable[..., Any]
"""Makes a `Server` with what `Server` takes; it has settled unless `settled=False` says otherwise."""


@contextmanager
def opened() -> Iterator[Start]:
    """Books of one server: its signals are noted, its forks and its memory are what it says, and its barriers are closed."""
    with pytest.MonkeyPatch.context() as patch:
        servers: list[Server] = []

        def start(*, settled: bool = True, **given: int) -> Server:
            server = Server(**given)
            servers.append(server)
            room = SimpleNamespace(beside=lambda wanted: server.beside or wanted)
            patch.setattr(succession, "Room", lambda *_, **__: room)
            patch.setattr(workforce, "os", SimpleNamespace(kill=server.kill))
            patch.setattr(workforce, "unsafe", lambda: server.unsafe)
            if settled:
                server.settle()
            return server

        yield start
        for server in servers:
            server.close()
