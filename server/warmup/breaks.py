"""Short breaks of a thread that stands back, in which its processor fetches what waits at another one.

A processor that has nothing left to run takes over a thread that waits elsewhere (Linux, `sched_balance_newidle`). One that runs
a thread of idle priority always has something to run: it counts as free, and a request's thread may yet wait at another
processor, behind a third, until a tick looks at that, milliseconds later. So who stands back leaves his processor empty for a
moment, again and again: on two processors, beside requests of 6 ms, an idle thread that multiplied matrices raised p99 2.6 to
3.5 times without breaks, and 1.1 times with them.

A native call that runs long is interrupted as well: the handler of the signal is the C library's `usleep` itself.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time

SIGNAL = int(signal.SIGRTMAX)
"""Nobody else's; and for as many microseconds the thread sleeps, since a handler is given its signal's number. Half of that is
too short: the kernel then has found that it is not worth while to look elsewhere."""
EVERY = 1_000_000
"""Nanoseconds from one break to the next."""

_SIGEV_THREAD_ID = 4
_PR_SET_TIMERSLACK = 29
_libc = ctypes.CDLL(None, use_errno=True)


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_char * 44),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


class Breaks:
    """Those of one thread, from `begin` to `end`. None where the C library or a sandbox has no such timer.

    A child does not inherit them. What the thread waits for in the kernel goes on as far as `SA_RESTART` goes (see signal(7)):
    a native `poll` or `sem_timedwait` ends with `EINTR`, which Python bears and not everybody does.
    """

    def __init__(self, clock: int = time.CLOCK_MONOTONIC) -> None:
        """There is no timer before the first `begin`.

        A thread that is kept from running for more than a millisecond comes back to a break that is due, and to nothing else:
        by the monotonic clock somebody must be there to `end` them. By the thread's own (`CLOCK_THREAD_CPUTIME_ID`) there is
        work between any two breaks, but the kernel looks at that clock at its ticks alone, of which there may be 250 in a second.
        """
        self.clock = clock
        self.timer: ctypes.c_void_p | None = None

    def begin(self) -> None:
        """In the one thread that they are of: take one after each millisecond."""
        if self.timer is None:
            self._make()
        self._set(EVERY)

    def end(self) -> None:
        """Take no more until the next `begin`; any thread of the process may say so."""
        self._set(0)

    def close(self) -> None:
        """Take none any more; any thread of the process may say so, and the one they were of may have ended.

        The handler stays: without it a signal that is under way would end the process.
        """
        if self.timer is not None:
            _libc.timer_delete(self.timer)
            self.timer = None

    def _make(self) -> None:
        timer = ctypes.c_void_p()
        event = _Event(None, SIGNAL, _SIGEV_THREAD_ID, threading.get_native_id())
        try:
            _libc.signal(SIGNAL, _libc.usleep)
            made = _libc.timer_create(self.clock, ctypes.byref(event), ctypes.byref(timer)) == 0
        except AttributeError:  # an older glibc keeps its timers elsewhere
            return
        if made:
            self.timer = timer
            _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # of this thread: or a break would take twice as long

    def _set(self, nanoseconds: int) -> None:
        if self.timer is not None:
            _libc.timer_settime(self.timer, 0, ctypes.byref(_Times(0, nanoseconds, 0, nanoseconds)), None)
