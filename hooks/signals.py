"""What the master does on a signal.

gunicorn has no hook for a reload that waits, a TERM that first drains, or a moment that comes again and again. Its main loop
looks its handlers up by name on the arbiter, so these are set there, in `when_ready`; they run in the loop, never inside a signal
handler. Nothing else that gunicorn does is replaced, three numbers of its are set, and all of it stands in this file.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gunicorn.arbiter import Arbiter

from server.exits import AskedToStopError
from server.master.master import Master
from server.processes import any_ended, hold_signals, release_signals

BUSY_SECONDS = 0.02
IDLE_SECONDS = 0.5
QUICK_SECONDS = 2
"""How long a quick stop waits for a worker that cannot run its handler, before it is killed."""

ends: dict[int, signal.Signals | int] = {}
"""How workers that gunicorn is about to reap have ended, by pid."""

_log = logging.getLogger("gunicorn.error")


def hold_around_forks() -> None:
    """Block signals from before each fork of the master until the child has handlers of its own, or they are lost."""
    master = os.getpid()

    def only_in_master(do: Callable[[], None]) -> Callable[[], None]:
        return lambda: do() if os.getpid() == master else None

    os.register_at_fork(before=only_in_master(hold_signals), after_in_parent=only_in_master(release_signals))


@contextmanager
def end_at_once(arbiter: Arbiter) -> Iterator[None]:
    """Before gunicorn's loop runs, TERM, INT and QUIT end the start there and then, with status 0; also those already queued."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise AskedToStopError(0)

    kept = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    try:
        queued = arbiter.wait_for_signals(timeout=0.0)
        if kept.keys() & set(queued):
            raise AskedToStopError(0)
        for number in queued:
            arbiter.signal(number, None)
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def install(arbiter: Arbiter, master: Master) -> None:
    """Set our handlers on the one arbiter, and start the timer."""
    reap = arbiter.handle_chld
    stop = {signal.SIGINT: arbiter.handle_int, signal.SIGQUIT: arbiter.handle_quit}

    def handle_chld() -> None:
        try:
            if any_ended():  # looked at first: gunicorn takes the status of whatever ends between our look and its own
                ends.update(master.watch(arbiter.WORKERS))
                reap()
            master.tick()
        finally:
            _rearm(BUSY_SECONDS if master.busy else IDLE_SECONDS)
        if master.drained:
            master.stop()
            _last_signals(arbiter)
            raise StopIteration

    def handle_term() -> None:
        if master.drain():
            _last_signals(arbiter)
            raise StopIteration

    def quick(number: signal.Signals) -> Callable[[], None]:
        def handle() -> None:
            master.stop()
            _last_signals(arbiter)
            arbiter.cfg.set("graceful_timeout", QUICK_SECONDS)
            stop[number]()

        return handle

    handlers: dict[str, Callable[[], None]] = {
        "chld": handle_chld,
        "cld": handle_chld,
        "hup": master.succession.reload,
        "term": handle_term,
        "int": quick(signal.SIGINT),
        "quit": quick(signal.SIGQUIT),
        "usr2": lambda: _log.error("USR2 refused: handing over to a new master is not built yet; what serves goes on serving"),
        "ttin": master.grow,
        "ttou": master.shrink,
    }
    for name, handler in handlers.items():
        setattr(arbiter, f"handle_{name}", _guarded(name, handler, arbiter, master))
    arbiter.num_workers = master.places
    # A worker that ends with one of these statuses would end gunicorn before `child_exit` is asked.
    for status in ("WORKER_BOOT_ERROR", "APP_LOAD_ERROR"):
        setattr(arbiter, status, -1)
    # gunicorn logs every signal that it handles but SIGCHLD, so the timer comes as one.
    signal.signal(signal.SIGALRM, lambda _number, frame: arbiter.signal_chld(signal.SIGCHLD, frame))
    _rearm(BUSY_SECONDS)


def _guarded(name: str, handler: Callable[[], None], arbiter: Arbiter, master: Master) -> Callable[[], None]:
    """A handler after which gunicorn is told how many workers to keep, and whose defects do not end a master that serves."""

    def guarded() -> None:
        try:
            handler()
        except StopIteration:  # how a handler asks gunicorn to stop
            raise
        except Exception:  # noqa: BLE001 - see above
            _log.exception("handling %s failed", name)
        arbiter.num_workers = master.places

    return guarded


def _rearm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _last_signals(arbiter: Arbiter) -> None:
    """Stop the timer and make a second TERM a QUIT.

    gunicorn's stop takes one signal each tenth of a second, and hurries for INT and QUIT alone.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, lambda _number, frame: arbiter.signal(signal.SIGQUIT, frame))
