"""Breaks of a thread that is in a native call: counted by the kernel as times that it has left its processor by itself."""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.processes import fork_child
from server.scoreboard import now_ms
from server.warmup import breaks, polite
from server.warmup.breaks import Breaks
from server.warmup.child import ThrowAwayChild
from server.warmup.messages import Doing, Say
from server.warmup.polite import Polite, process_stands_back

DATA = bytes(1 << 24)
ENOUGH = 20
"""Breaks; a native call never leaves its processor by itself."""
LONG = 60_000


@pytest.fixture
def own() -> Iterator[Breaks]:
    """Breaks of this thread."""
    made = Breaks()
    yield made
    made.close()


def left() -> int:
    """How often the calling thread has left its processor by itself."""
    (found,) = re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", Path("/proc/thread-self/status").read_text(), re.MULTILINE)
    return int(found)


def timers() -> int:
    """How many timers this process has."""
    return Path("/proc/self/timers").read_text().count("notify:")


def work(milliseconds: int = 0) -> int:
    """Native calls until there have been enough breaks, or for so long at most; gives how many breaks there were."""
    before, end = left(), now_ms() + (milliseconds or LONG)
    while left() - before < ENOUGH and now_ms() < end:
        zlib.crc32(DATA)
    return left() - before


def test_breaks(own: Breaks) -> None:
    """From `begin` to `end`, again and again; a native call is interrupted as well, and gives what it gives."""
    for _ in range(2):
        own.begin()
        assert work() >= ENOUGH
        own.end()
        assert work(100) < ENOUGH
    own.begin()
    before = left()
    found = {zlib.crc32(DATA) for _ in range(50)}
    assert len(found) == 1
    assert left() > before


def test_close(own: Breaks) -> None:
    """No timer is left after the end, also when another thread says so and theirs is gone; they may begin anew."""
    before = timers()
    thread = threading.Thread(target=own.begin)
    thread.start()
    thread.join()
    assert timers() == before + 1

    own.close()
    own.end()

    assert timers() == before
    own.begin()
    assert work() >= ENOUGH


def test_own_clock() -> None:
    """By the clock of the thread itself they are taken while it works, and it is not woken up from its sleep."""
    own = Breaks(time.CLOCK_THREAD_CPUTIME_ID)
    own.begin()
    assert work() >= ENOUGH
    before = left()
    time.sleep(0.5)  # what is looked at: by the other clock this would be some 500 breaks
    own.close()
    assert left() - before < ENOUGH


def test_a_child_has_none(own: Breaks) -> None:
    """They are not inherited by a process that is forked."""
    own.begin()
    pid = fork_child(lambda: int(work(100) >= ENOUGH))
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("timers", [{}, {"timer_create": lambda *_: -1}], ids=["library", "kernel"])
def test_no_timers(own: Breaks, monkeypatch: pytest.MonkeyPatch, timers: dict[str, Any]) -> None:
    """Where the C library has no such timers, or the kernel gives none, the work is done without breaks."""
    monkeypatch.setattr(breaks, "_libc", SimpleNamespace(signal=lambda *_: None, usleep=None, **timers))

    own.begin()

    assert own.timer is None
    own.end()
    own.close()


def test_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stands back takes breaks in its units, where they bear it; the thread that serves takes none."""
    monkeypatch.setattr(polite, "stand_back", lambda: None)  # or a busy machine would keep it from its work
    monkeypatch.setattr(polite, "LOOK", LONG)
    pace = Polite(lambda: now_ms() + LONG, aside=True)
    try:
        assert pace.aside(work) >= ENOUGH
        assert pace.aside(partial(work, 100), breaks=False) < ENOUGH
        assert work(100) < ENOUGH
    finally:
        pace.close()
    assert pace.breaks.timer is None


@pytest.mark.parametrize("polite_ms", [LONG, 500], ids=["no processor", "time is up"])
def test_breaks_end(monkeypatch: pytest.MonkeyPatch, polite_ms: int) -> None:
    """Who gets no processor would come to nothing but breaks, so they end, and so they do when the time to be polite is over."""
    ran = count(1) if polite_ms < LONG else repeat(0)  # it always runs, or never does
    monkeypatch.setattr(polite, "counted", lambda _: (float(next(ran)), 0.0))
    end = now_ms() + polite_ms
    pace = Polite(lambda: end, aside=True)
    ended = threading.Event()
    monkeypatch.setattr(pace.breaks, "end", ended.set)
    try:
        assert pace.aside(lambda: ended.wait(LONG / 1000))
    finally:
        pace.close()


def test_children_take_breaks() -> None:
    """A throw-away child that stands back takes breaks, and so does the one that it throws away itself."""

    def outer(say: Say) -> None:
        process_stands_back()
        say(Doing(f"outer {work() >= ENOUGH}"))
        ThrowAwayChild("inner", lambda tell: tell(Doing(f"inner {work() >= ENOUGH}")), LONG / 1000, say).run()

    said: list[str] = []
    child = ThrowAwayChild("outer", outer, LONG / 1000, lambda message: said.append(getattr(message, "what", "")))
    child.run()

    assert said == ["outer True", "inner True"]
