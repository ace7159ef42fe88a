"""A throw-away child: what it found, how it failed, and that nothing of it stays."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from server.exits import ConfigurationError, ExitError, ModelError, ResourceError, UnshareableError
from server.models.finding import Finding
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Message, Say
from tests.orphan import leave_orphans

FINDING = Finding("m/1", "fake", "live", "", batched=True, shapes=[{"batch": 1}], private_bytes=5)
SHORT = 0.3
ENOUGH = 2.0
"""Seconds in which a child comes to its second step."""
LONG = 60.0
HANG = 3600


def descriptors() -> set[str]:
    """What this process has open."""
    return {f"{entry.name} {entry.readlink()}" for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """After each test there is no child, no zombie and no descriptor more than before."""
    leave_orphans()  # another test of this process may have adopted some
    before = descriptors()
    others = set(psutil.Process().children(recursive=True))
    yield
    assert not descriptors() - before
    assert not set(psutil.Process().children(recursive=True)) - others


def child(work: Callable[[Say], object], patience: float = LONG, relay: Say | None = None) -> ThrowAwayChild:
    """A child that does `work`."""

    def only(say: Say) -> None:
        work(say)

    return ThrowAwayChild("the child", only, patience, relay)


def failure(work: Callable[[Say], object], patience: float = LONG) -> ExitError:
    """Why such a child failed."""
    with pytest.raises(ExitError) as failed:
        child(work, patience).run()
    assert "\n" not in str(failed.value)
    return failed.value


def raising(error: BaseException) -> Callable[[Say], object]:
    """Work that is at a step and then raises."""

    def work(say: Say) -> None:
        say(Doing("step two"))
        raise error

    return work


def test_result() -> None:
    """What the child finds comes back in order, what it is doing is relayed, and it is another process."""
    relayed: list[Message] = []

    def work(say: Say) -> None:
        say(Doing("one"))
        say(FINDING)
        say(Doing(f"two \N{SNOWMAN} {os.getpid()}"))
        say(FINDING)

    made = child(work, relay=relayed.append)

    assert [FINDING, FINDING] == made.run()
    assert [Doing("one"), Doing(f"two \N{SNOWMAN} {made.pid}")] == relayed
    assert made.pid != os.getpid()


def test_much_to_say() -> None:
    """More than a pipe holds arrives whole."""
    many = [Finding(f"m/{n}", "fake", "live", "x" * 5000, batched=True, shapes=[], private_bytes=0) for n in range(100)]

    assert many == child(lambda say: list(map(say, many))).run()


def test_steps_do_not_block() -> None:
    """A look at a child that is at work comes back at once."""
    ours, theirs = os.pipe()
    made = child(lambda _: os.read(ours, 1))
    assert not made.step(0)
    assert not made.step(0.01)
    os.write(theirs, b"x")

    assert [] == made.run()
    os.close(ours)
    os.close(theirs)


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child may take longer than its patience as long as it says something."""
    now = [0.0]
    monkeypatch.setattr("server.warmup.child.time", SimpleNamespace(monotonic=lambda: now[0]))

    left = []

    def later(_: Message) -> None:
        left.append(made.deadline - now[0])
        now[0] += 0.8 * LONG

    def slowly(say: Say) -> None:
        for turn in range(6):
            say(Doing(f"turn {turn}"))

    made = child(slowly, LONG, later)
    assert [] == made.run()
    assert [LONG] * 6 == pytest.approx(left)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ConfigurationError("the line"), ConfigurationError, 78),
        (ModelError("the line"), ModelError, 70),
        (UnshareableError("the line"), UnshareableError, 70),
        (ResourceError("the line"), ResourceError, 75),
    ],
)
def test_failure(error: ExitError, kind: type[ExitError], status: int) -> None:
    """What the child raises is raised here: the same kind, status and line."""
    failed = failure(raising(error))

    assert (kind, status, "the line") == (type(failed), failed.status, str(failed))


def test_memory() -> None:
    """Memory that ran out is a missing resource; the line says at which step of which child."""
    failed = failure(raising(MemoryError()))

    assert isinstance(failed, ResourceError)
    assert "the child: memory ran out at step two" == str(failed)


def test_unexpected(capfd: pytest.CaptureFixture[str]) -> None:
    """Any other exception comes back in one line with its type and text."""
    failed = failure(raising(KeyError("a\nb")))

    assert 70 == failed.status
    assert "KeyError" in str(failed)
    capfd.readouterr()


@pytest.mark.parametrize("hang", [lambda: time.sleep(HANG), lambda: ctypes.PyDLL(None).sleep(HANG)], ids=["python", "native"])
def test_hang(capfd: pytest.CaptureFixture[str], hang: Callable[[], object]) -> None:
    """A child that is silent too long, also in native code that holds the GIL, shows its stacks; the line names the step."""

    def deep_in_the_model(say: Say) -> None:
        say(Doing("step two"))
        hang()

    failed = failure(deep_in_the_model, ENOUGH)

    assert isinstance(failed, UnshareableError)
    assert f"the child: hung for more than {ENOUGH:g} s at step two" == str(failed)
    stacks = capfd.readouterr().err
    assert "Fatal Python error: Aborted" in stacks
    assert "in deep_in_the_model" in stacks


def test_hang_that_ignores_everything() -> None:
    """A child that takes no SIGABRT is ended all the same."""

    def work(_: Say) -> None:
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        time.sleep(HANG)

    assert "hung for more than" in str(failure(work, SHORT))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGTERM])
def test_crash(capfd: pytest.CaptureFixture[str], number: signal.Signals) -> None:
    """A crash is told by its signal and the step; another way of sharing may not crash."""

    def work(say: Say) -> None:
        say(Doing("step two"))
        signal.raise_signal(number)

    failed = failure(work)

    assert isinstance(failed, UnshareableError)
    assert f"the child: the child was killed by {number.name} at step two" == str(failed)
    capfd.readouterr()


def test_killed() -> None:
    """SIGKILL is the kernel's own when memory is short: trying again may help."""
    failed = failure(lambda _: os.kill(os.getpid(), signal.SIGKILL))

    assert isinstance(failed, ResourceError)
    assert "killed by SIGKILL at starting" in str(failed)


@pytest.mark.parametrize("status", [0, 3])
def test_silent_exit(status: int) -> None:
    """A child that leaves without a word has not succeeded, whatever its status."""
    failed = failure(lambda _: os._exit(status))

    assert isinstance(failed, UnshareableError)
    assert f"the child ended itself with status {status} at starting" in str(failed)


def test_system_exit() -> None:
    """A model that ends its process is not one that works."""
    assert 70 == failure(lambda _: sys.exit(0)).status


@pytest.mark.timeout(30)
def test_closed_pipe() -> None:
    """A child that closes every descriptor and hangs is ended, and is not taken for one that the kernel killed."""

    def work(_: Say) -> None:
        os.closerange(3, 4096)
        time.sleep(HANG)

    failed = failure(work, SHORT)

    assert isinstance(failed, UnshareableError)


@pytest.mark.timeout(30)
def test_grandchild_keeps_the_pipe() -> None:
    """A child that leaves a process behind, which has the pipe still open, is over when it says so."""
    ours, theirs = os.pipe()

    def work(say: Say) -> None:
        os.close(theirs)
        if not os.fork():
            os.read(ours, 1)  # until this test is over
            os._exit(0)
        say(FINDING)

    assert [FINDING] == child(work, 20).run()
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("over", [True, False])
def test_reaped_by_somebody_else(over: bool) -> None:  # noqa: FBT001
    """Where somebody who waits for any child takes its status, its verdict is the same, and a crash is no success."""
    made = child(lambda say: say(FINDING) if over else os._exit(0))
    while not made.step(LONG):
        pass
    os.waitpid(made.pid, 0)

    if over:
        assert [FINDING] == made.verdict()
    else:
        with pytest.raises(UnshareableError, match="the child: the child ended at starting"):
            made.verdict()


def test_close() -> None:
    """A child that is no longer wanted is ended at once, and closing again does nothing."""
    made = child(lambda _: time.sleep(HANG))
    made.close()
    made.close()


def test_dies_with_its_parent() -> None:
    """A child of a child that is killed ends with it: the pipe that it holds open is closed by the kernel."""
    ours, theirs = os.pipe()

    def parent(say: Say) -> None:
        def grandchild(inner: Say) -> None:
            inner(Doing("alive"))
            time.sleep(HANG)

        ThrowAwayChild("inner", grandchild, LONG, say).run()

    made = child(parent)
    while made.doing != "alive":
        made.step(LONG)
    os.close(theirs)
    made.close()

    assert b"" == os.read(ours, 1)
    os.close(ours)
