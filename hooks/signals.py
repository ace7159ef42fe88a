"""What the master does on a signal.

gunicorn has no hook for a reload that waits, a TERM that first drains, or a moment that comes again and again. Its main loop
looks its handlers up by name on the arbiter, so these are set there, in `when_ready`; they run in the loop, never inside a signal
handler. Two more of its methods are wrapped: the wait for signals, which gives one at a time, and the fork of a worker, whose
failure would end the server. A few of its values are set. Nothing else that it does is replaced; all of it stands in this file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import NoReturn

from gunicorn import systemd
from gunicorn.arbiter import Arbiter

from server import gate
from server.exits import AskedToStopError
from server.master.master import Master
from server.processes import any_ended, default_signals, hold_signals, release_signals, restore_signals

BUSY_SECONDS = 0.02
IDLE_SECONDS = 0.5
QUICK_SECONDS = 2
"""How long a quick stop waits for a worker that cannot run its handler, before it is killed."""

EXEC_STATUS = 127
"""What a shell says of a program that cannot be started."""

ends: dict[int, signal.Signals | int] = {}
"""How workers that gunicorn is about to reap have ended, by pid."""

_log = logging.getLogger("gunicorn.error")


def hold_around_forks() -> None:
    """Block signals from before each fork of the master until the child has handlers of its own, or they are lost.

    What a handler raises in `after` is lost all the same, as in every callback of a fork: `fork_child` holds them for longer.
    """
    master = os.getpid()
    held: list[set[int]] = []

    def before() -> None:
        if os.getpid() == master:
            held.append(hold_signals())

    def after() -> None:
        if held and os.getpid() == master:
            restore_signals(held.pop())

    os.register_at_fork(before=before, after_in_parent=after)


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


class Handlers:
    """What gunicorn's main loop does for each signal, by the signal's name."""

    def __init__(self, arbiter: Arbiter, master: Master) -> None:
        """Keep what gunicorn itself would do, where that is done as well."""
        self.arbiter = arbiter
        self.master = master
        self.hand_over = master.hand_over
        self.reap, self.stop_quickly = arbiter.handle_chld, arbiter.handle_quit
        self.wait_for_all = arbiter.wait_for_signals
        self.waiting: deque[int] = deque()
        """Signals that have come, and are not handled."""
        self.put_off = False
        """Whether workers have ended with status 0 of which nobody has taken notice yet."""
        self.cld = self.chld
        self.int = self.quit

    def wait(self, timeout: float = 1.0) -> list[int]:
        """gunicorn's wait for signals, one at a time: whatever stands behind one that ends its loop would be lost."""
        if not self.waiting:
            self.waiting.extend(self.wait_for_all(timeout=timeout))
        return [self.waiting.popleft()] if self.waiting else []

    @property
    def heard_all(self) -> bool:
        """Whether no signal has come that is not handled, but for the one at hand."""
        return not self.waiting and self.arbiter.SIG_QUEUE.empty()

    def chld(self) -> None:
        """Something has ended, or the timer came."""
        master, successor = self.master, self.hand_over.successor
        try:
            if any_ended():  # looked at first: gunicorn takes the status of whatever ends between our look and its own
                ended = master.watch([*self.arbiter.WORKERS, *([successor.pid] if successor.pid else [])])
                ends.update(ended)
                # So ends a worker that was asked to. Who has asked all of us, by a signal to the group, is heard first.
                self.put_off = not self.put_off and 0 in ended.values()
                if not self.put_off:
                    self.reap()
            if successor.pid and not self.arbiter.reexec_pid:
                master.stay(ends.pop(successor.pid, None))
            master.tick(heard_all=self.heard_all)
            if master.due and self.heard_all:  # a TERM may have ended the load
                self.usr2()
        finally:
            _rearm(BUSY_SECONDS if master.busy or self.put_off else IDLE_SECONDS)
        if master.over():
            if successor.warm and self.arbiter.log:
                systemd.sd_notify(f"MAINPID={successor.pid}", self.arbiter.log)
            # Where it was no TERM that ended it, the first one is still to come.
            self._stop(spare=int(self.hand_over.others_serve))

    def hup(self) -> None:
        """Make a new generation; a new master shall do it instead, if one is on its way."""
        self.master.reload()

    def ttin(self) -> None:
        """One worker more."""
        self.master.grow()
        self.hand_over.successor.miss(signal.SIGTTIN)

    def ttou(self) -> None:
        """One worker fewer."""
        self.master.shrink()
        self.hand_over.successor.miss(signal.SIGTTOU)

    def term(self) -> None:
        """Drain, then stop; so shall a new master, if one is on its way."""
        self.hand_over.successor.end()
        if self.master.drain():
            self._stop(spare=int(self.hand_over.backed))  # it may come twice, sent to a group and passed on by a master

    def quit(self) -> None:
        """Stop without waiting for requests."""
        self.hand_over.successor.end()
        self.master.stop()
        self._last_signals()
        self.arbiter.cfg.set("graceful_timeout", QUICK_SECONDS)
        self.stop_quickly()

    def usr2(self) -> None:
        """Start a new master beside this one, now or after a reload that is under way."""
        if not self.master.may_hand_over():
            return
        self.arbiter.maybe_promote_master()  # the master before this one may have ended just now
        ours = os.getpid()
        try:
            self.hand_over.successor.prepare()
            self.arbiter.reexec()
        except BaseException as error:
            if os.getpid() != ours:  # or there would be two of us
                _log.exception("The new master could not be started")
                os._exit(EXEC_STATUS)
            self.hand_over.successor.abandon()
            if not isinstance(error, OSError):
                raise
            self.hand_over.refuse(f"no new master can be started: {error}")
        else:
            self.hand_over.successor.began(self.arbiter.reexec_pid)

    def _stop(self, spare: int) -> NoReturn:
        self._last_signals(spare)
        if not (self.hand_over.others_serve or self._borrowed):
            gate.shut([listener.sock for listener in self.arbiter.LISTENERS])
        self.master.stop()
        raise StopIteration

    def _last_signals(self, spare: int = 0) -> None:
        """Stop the timer and make each TERM after the next `spare` a QUIT: who asks a second time wants it to hurry.

        gunicorn's stop takes one signal each tenth of a second, and hurries for INT and QUIT alone.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        heard = count()

        def hurry(_number: int, frame: FrameType | None) -> None:
            if next(heard) >= spare:
                self.arbiter.signal(signal.SIGQUIT, frame)

        signal.signal(signal.SIGTERM, hurry)
        for number in (*self.waiting, *self.wait_for_all(timeout=0.0)):  # what has come behind the first
            if number == signal.SIGTERM:
                hurry(number, None)
            elif number in (signal.SIGINT, signal.SIGQUIT):
                self.arbiter.signal(number, None)

    @property
    def _borrowed(self) -> bool:
        """Whether the sockets outlive this server: systemd's, or those of whoever has bound them before it."""
        return self.arbiter.systemd or any(isinstance(each, int) for each in self.arbiter.cfg.address)


def install(arbiter: Arbiter, master: Master) -> None:
    """Set our handlers on the one arbiter, and start the timer."""
    handlers = Handlers(arbiter, master)
    for name in ("chld", "cld", "hup", "term", "int", "quit", "usr2", "ttin", "ttou"):
        setattr(arbiter, f"handle_{name}", _guarded(name, getattr(handlers, name), arbiter, master))
    setattr(arbiter, "wait_for_signals", handlers.wait)  # noqa: B010 - mypy knows it as a method
    predecessor = master.hand_over.predecessor
    if predecessor and predecessor.systemd:
        arbiter.systemd = True
    arbiter.num_workers = master.places
    setattr(arbiter, "spawn_worker", _surviving(arbiter.spawn_worker, master))  # noqa: B010 - as above
    arbiter.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]  # gunicorn's own does not survive `python -m gunicorn`
    # A worker that ends with one of these statuses would end gunicorn before `child_exit` is asked.
    for status in ("WORKER_BOOT_ERROR", "APP_LOAD_ERROR"):
        setattr(arbiter, status, -1)
    # gunicorn logs every signal that it handles but SIGCHLD, so the timer comes as one.
    signal.signal(signal.SIGALRM, lambda _number, frame: arbiter.signal_chld(signal.SIGCHLD, frame))
    _rearm(BUSY_SECONDS)


def default() -> None:
    """In a child of the master that becomes another program: no signal is held back, and none is ours."""
    default_signals()
    release_signals()


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


def _surviving(spawn: Callable[[], object], master: Master) -> Callable[[], None]:
    """gunicorn's fork of a worker, without the end of all that serve where processes, descriptors or memory are missing."""
    ours = os.getpid()
    mask = os.umask(0)
    os.umask(mask)

    def spawn_worker() -> None:
        if not master.may_fork:
            return
        try:
            spawn()
        except OSError as error:
            if os.getpid() != ours:
                raise
            os.umask(mask)  # gunicorn leaves another where it could not make the file of a heartbeat
            master.not_forked(error)

    return spawn_worker


def _rearm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
