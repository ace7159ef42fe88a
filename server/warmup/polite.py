"""How fast a worker warms: at full speed where nobody serves, politely beside those that do.

Only root can raise a priority that was lowered. So what can stand back does so in a thread of its own, which ends with the
warmup; the thread that is to serve keeps its priority, and where work must be done in that one it rests in between.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from server.scoreboard import now_ms
from server.warmup.breaks import Breaks
from server.warmup.waiting import COUNTED, counted, own_clock, waited

ALONE = 1
"""Said in place of a time to a worker that boots while nobody serves: it need not be polite to anybody."""
LONGEST_REST = 0.25
"""Seconds."""
LOOK = 0.05
"""Seconds between two looks at the thread that stands back."""
NOTICED = 0.02
"""Of the time that something took, what it may have waited for a processor where there was one for everybody."""

T = TypeVar("T")


class Pace:
    """At full speed: whatever is to be done is done at once, in the calling thread."""

    @property
    def apart(self) -> bool:
        """Whether what is done aside is done in another thread."""
        return False

    def aside(self, unit: Callable[[], T], *, breaks: bool = True) -> T:  # noqa: ARG002 - there is nobody to take them for
        """Do what any thread may do; gives what it gives and raises what it raises.

        `breaks`: whether native code of it may be interrupted, as by a signal.
        """
        return unit()

    def here(self, unit: Callable[[], T]) -> T:
        """Do what the calling thread must do itself."""
        return unit()

    def clock(self) -> AbstractContextManager[Callable[[], float]]:
        """Give a clock of seconds for what the calling thread does, less those for which others keep it waiting: here none."""
        return nullcontext(time.perf_counter)

    def waited(self) -> float:
        """Seconds for which the calling thread has been kept waiting by others so far."""
        return 0.0

    def close(self) -> None:
        """There is no more to do."""


FULL_SPEED = Pace()


class Polite(Pace):
    """Until a time, behind everybody else."""

    def __init__(self, until: Callable[[], int], *, aside: bool, breaks: bool = True) -> None:
        """Be polite up to `until()`, in milliseconds of the monotonic clock; it may change.

        `aside`: whether a model may run in another thread than the one that serves. It may not where it runs on several (those
        began with its session, and do not stand back) or is bound to its first; then the calling thread does it all, and rests.
        `breaks`: whether native code may be interrupted at all. That of a GPU's driver may not.
        """
        self.takes_breaks = breaks
        self.until = until
        self.pool = ThreadPoolExecutor(1, "polite", self._begin) if aside else None
        self.task = 0
        self.breaks = Breaks()

    @property
    def apart(self) -> bool:
        """Whether there is such a thread."""
        return self.pool is not None

    def aside(self, unit: Callable[[], T], *, breaks: bool = True) -> T:
        """Do it in a thread that runs where no other wants to."""
        if not self._polite():
            self.close()
        if not self.pool:
            return self.here(unit)
        ran, kept = counted(self._task / "schedstat")
        future = self.pool.submit(self._behind, unit) if breaks and self.takes_breaks else self.pool.submit(unit)
        try:
            while not wait([future], LOOK).done:
                before, (ran, kept) = (ran, kept), counted(self._task / "schedstat")
                if kept - before[1] >= ran - before[0] or not self._polite():
                    self.breaks.end()  # all processors are wanted: nobody needs them, and there would be nothing but breaks
        except BaseException:  # raised by the handler of a signal: nobody looks any more
            self.breaks.end()
            raise
        return future.result()

    def here(self, unit: Callable[[], T]) -> T:
        """Do it, and rest for as long as it took, unless there was a processor for everybody."""
        start, before = time.monotonic(), waited()
        result = unit()
        took = time.monotonic() - start
        if self._polite() and not (COUNTED.exists() and waited() - before < NOTICED * took):
            time.sleep(min(took, LONGEST_REST))
        return result

    def clock(self) -> AbstractContextManager[Callable[[], float]]:
        """Give one that stands still while the thread waits for a processor."""
        return own_clock()

    def waited(self) -> float:
        """Seconds, as the kernel counts them."""
        return waited()

    def close(self) -> None:
        """Wait until no thread of this process stands back any more."""
        if self.pool:
            self.pool.shutdown()
            self.pool = None
            while self.task and self._task.exists():  # Python has joined it, the kernel is not done
                time.sleep(0.001)
            self.breaks.close()

    @property
    def _task(self) -> Path:
        return Path(f"/proc/self/task/{self.task}")

    def _polite(self) -> bool:
        return now_ms() < self.until()

    def _begin(self) -> None:
        self.task = threading.get_native_id()
        stand_back()

    def _behind(self, unit: Callable[[], T]) -> T:
        self.breaks.begin()
        try:
            return unit()
        finally:
            self.breaks.end()


def process_stands_back(*, breaks: bool = True) -> None:
    """Have this process, which is to be thrown away, stand back; what it forks does as well, but takes no breaks by itself."""
    stand_back()
    if breaks:
        Breaks(time.CLOCK_THREAD_CPUTIME_ID).begin()


def stands_back() -> bool:
    """Whether this thread does, or whoever has forked it."""
    try:
        return os.sched_getscheduler(0) == os.SCHED_IDLE
    except OSError:  # a sandbox that refuses this
        return False


def stand_back() -> None:
    """Have this thread, and what it forks, run only where no other wants to; without root for ever.

    Not by `nice`: a thread that serves and wakes up takes the processor from this one at once, and counts it as free.
    """
    with suppress(OSError):  # a sandbox that refuses this
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
