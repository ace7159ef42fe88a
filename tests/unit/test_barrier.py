"""Where workers wait for each other: nobody is woken for nothing, nobody is forgotten, the dead block nobody."""

from __future__ import annotations

import os
import signal

import pytest

from server.barrier import Barrier, Point
from server.processes import fork_child
from server.scoreboard import Scoreboard

SLOTS = 3


def rung(slots: int = SLOTS) -> Barrier:
    """A barrier with a bell for each of some slots."""
    barrier = Barrier()
    for slot in range(slots):
        barrier.add(slot)
    return barrier


def waiter(barrier: Barrier, board: Scoreboard, slot: int, generation: int) -> int:
    """A process that waits in `slot` for a generation to open; its pid. It counts its looks, and says when it is through."""

    def run() -> int:
        def is_open() -> bool:
            board.slots["requests"][slot] += 1
            return board.get("generation") >= generation

        barrier.wait(slot, is_open)
        return 7

    return fork_child(run)


def ended(pid: int) -> int:
    """How a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def looks(board: Scoreboard, slot: int, count: int) -> None:
    """Come back once a waiter has looked so often."""
    while board.slots["requests"][slot] < count:
        os.sched_yield()


def test_all_are_woken() -> None:
    """Every worker whose bell is rung sees what is open; one that is killed in the middle changes nothing for the others."""
    barrier, board = rung(), Scoreboard.create(SLOTS)
    pids = [waiter(barrier, board, slot, 1) for slot in range(SLOTS)]
    for slot in range(SLOTS):
        looks(board, slot, 1)
    os.kill(pids[1], signal.SIGKILL)
    assert -signal.SIGKILL == ended(pids[1])

    board.set("generation", 1)
    for slot in range(SLOTS):
        barrier.wake(slot)

    assert [7, 7] == [ended(pids[0]), ended(pids[2])]


def test_looks_again() -> None:
    """A worker that is woken while nothing is open looks and waits on; the bell of another slot does not wake it."""
    barrier, board = rung(), Scoreboard.create(SLOTS)
    pid = waiter(barrier, board, 0, 2)
    looks(board, 0, 1)
    board.set("generation", 1)
    barrier.wake(1)
    barrier.wake(0)
    looks(board, 0, 2)
    assert (0, 0) == os.waitpid(pid, os.WNOHANG)
    assert 2 == board.slots["requests"][0]

    board.set("generation", 2)
    barrier.wake(0)

    assert 7 == ended(pid)
    assert 3 == board.slots["requests"][0]


@pytest.mark.timeout(20)
def test_rung_too_early() -> None:
    """A bell that was rung before anybody waited is not lost, however often it was rung, and one that is open needs none."""
    barrier, board = rung(), Scoreboard.create(SLOTS)
    board.set("generation", 1)
    assert 7 == ended(waiter(barrier, board, 0, 1))
    board.set("generation", 0)
    answers = iter([False, True])
    for _ in range(5):
        barrier.wake(2)

    barrier.wait(2, lambda: next(answers))

    assert next(answers, None) is None


def test_not_handed_on() -> None:
    """The bells do not go over an exec, and the points are passed in order."""
    bells = rung().bells
    assert SLOTS == len(bells)
    assert not any(os.get_inheritable(bell) for bell in bells.values())
    assert [Point.PROVEN, Point.REHEARSED] == sorted(Point)
    assert all(Point)  # 0 is what a slot that was just given out says


def test_a_bell_per_worker() -> None:
    """A bell is there from the fork to the end of its worker; the next in its slot gets one that nobody has rung."""
    barrier = Barrier()
    barrier.add(1)
    first = barrier.bells[1]
    barrier.wake(1)
    with pytest.raises(KeyError):
        barrier.wake(0)

    barrier.drop(1)

    assert not barrier.bells
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    barrier.add(1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(barrier.bells[1])
