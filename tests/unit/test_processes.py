"""What Linux knows of processes: a child's end, dying with the parent, signals across a fork."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from hooks.signals import hold_around_forks
from server import processes

HANG = 3600
LEFT = 1000
"""More objects than a child makes on its way, fewer than a test has."""


def hang() -> int:
    """Do nothing for very long."""
    time.sleep(HANG)
    return 0


def ended(pid: int) -> int:
    """How a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fork_child() -> None:
    """A child leaves with what its function returns, or with 70 if that raises; it never comes back into the parent's code."""
    assert 7 == ended(processes.fork_child(lambda: 7))
    assert 70 == ended(processes.fork_child(lambda: int("x")))


def test_child_keeps_what_is_shared() -> None:
    """A collection in a child leaves alone all that it was forked with; its parent goes on collecting."""
    frozen = gc.get_freeze_count()

    assert 0 == ended(processes.fork_child(lambda: len(gc.get_objects()) > LEFT))

    assert frozen == gc.get_freeze_count()
    assert len(gc.get_objects()) > LEFT


def test_signal_during_a_fork() -> None:
    """What a handler raises for a signal that came during a fork is raised after it, and not lost in a callback."""

    def forks() -> int:
        os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))  # runs after what is registered later
        hold_around_forks()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            processes.fork_child(lambda: 0)
        except SystemExit:
            return 7
        return 1

    assert 7 == ended(processes.fork_child(forks))


def test_child_takes_signals() -> None:
    """A child ends by a signal at once, though its parent has a handler and holds the signal back."""
    kept = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with processes.signals_held():
            pid = processes.fork_child(hang)
            os.kill(pid, signal.SIGTERM)
            assert -signal.SIGTERM == ended(pid)
    finally:
        signal.signal(signal.SIGTERM, kept)


def test_held_signals_are_not_lost() -> None:
    """A signal that comes while signals are held is taken when they are released."""
    taken: list[int] = []
    kept = signal.signal(signal.SIGHUP, lambda number, _: taken.append(number))
    try:
        with processes.signals_held():
            signal.raise_signal(signal.SIGHUP)  # to this thread: another one may be there, that holds nothing
            assert [] == taken
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert [signal.SIGHUP] == taken


def test_a_thread_begun_while_signals_are_held() -> None:
    """It holds them back for good, and so takes none from those that hold one back later."""
    masks: list[set[int]] = []
    thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    with processes.signals_held():
        thread.start()
    thread.join()
    assert {*processes.HELD} <= masks[0]
    assert not {*processes.HELD} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_dies_with_parent() -> None:
    """A grandchild ends when the child between is killed; its descriptor is then closed."""
    ours, theirs = os.pipe()

    def parent() -> int:
        processes.fork_child(lambda: os.write(theirs, b"x") * 0 + hang())
        time.sleep(HANG)
        return 0

    pid = processes.fork_child(parent)
    os.close(theirs)
    assert b"x" == os.read(ours, 1)
    os.kill(pid, signal.SIGKILL)
    assert -signal.SIGKILL == ended(pid)

    assert select.select([ours], [], [], 30)[0]
    assert b"" == os.read(ours, 1)
    os.close(ours)


def test_parent_is_gone() -> None:
    """A process whose parent is another one than it was leaves at once."""

    def orphan() -> int:
        processes.die_with_parent(1)
        return 9

    assert 0 == ended(processes.fork_child(orphan))


def test_memory() -> None:
    """Memory is told in bytes by the kernel's names; nothing of a process that has ended."""
    held = processes.memory()
    assert 0 < held["Pss"] <= held["Rss"]
    assert 0 < processes.private_bytes() <= held["Rss"] * 2
    pid = processes.fork_child(lambda: 0)
    ended(pid)

    assert {} == processes.memory(pid)
    assert 0 == processes.private_bytes(pid)


def test_a_worker_keeps_its_heap() -> None:
    """Memory of a large request's size is not faulted in again for each request."""

    def child() -> int:
        processes.share_heap()
        faults = []
        for _ in range(20):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            blocks = [bytes(size) for _ in range(4)]
            del blocks
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return int(sum(faults[10:]) > size // resource.getpagesize())

    size = 4 << 20
    assert 0 == ended(processes.fork_child(child))


def test_expendable() -> None:
    """What a process says of itself when memory runs out is as it was once it takes that back."""
    file = Path("/proc/self/oom_score_adj")
    before = file.read_text(encoding="ascii")

    def said(*, yes: bool) -> str:
        processes.expendable(yes=yes)
        return file.read_text(encoding="ascii")

    assert ("1000\n", before) == (said(yes=True), said(yes=False))


def test_any_ended() -> None:
    """A child that has ended is seen until somebody has asked how; one that lives is not."""

    def parent() -> int:  # a process of its own: this one may have other children
        ours, theirs = os.pipe()
        pid = processes.fork_child(lambda: len(os.read(ours, 1)) - 1)
        seen = [processes.any_ended()]
        os.write(theirs, b"x")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        seen.append(processes.any_ended())
        ended(pid)
        seen.append(processes.any_ended())
        return int(seen != [False, True, False])

    assert 0 == ended(processes.fork_child(parent))


@pytest.mark.parametrize("name", ["plain", "a) Z (b"])
def test_alive(name: str) -> None:
    """A child lives until it has ended, reaped or not, whatever it calls itself; nobody else's child is ours."""
    ours, theirs = os.pipe()

    def child() -> int:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:  # noqa: PTH123 - no file to replace, only to write
            comm.write(name)
        os.read(ours, 1)
        return 0

    pid = processes.fork_child(child)
    assert processes.alive(pid, os.getpid())
    assert not processes.alive(pid, os.getppid())
    os.write(theirs, b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not processes.alive(pid, os.getpid())
    ended(pid)
    assert not processes.alive(pid, os.getpid())
    os.close(ours)
    os.close(theirs)
