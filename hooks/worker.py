"""The hooks that gunicorn runs in a worker: after the fork, before it serves, at its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter

from hooks import master as hooks_master
from server import processes, serving
from server.api import app  # noqa: F401 - imported in the master once, so that its workers share it
from server.worker.boot import Boot, deadline_in, leave
from server.worker.direct import through_app

_boot: list[Boot] = []


def post_fork(_arbiter: Arbiter, worker: Any) -> None:
    """Become a worker: die with the master, take no signal of its, keep nothing of other generations, load."""
    master = hooks_master.master
    processes.keep_shared()
    processes.die_with_parent(worker.ppid)
    _boot_signals(worker)
    processes.release_signals()
    assignment = master.workforce.assignments[worker]
    if assignment.slot is None:
        time.sleep(assignment.backoff)
        leave(0)
    master.release()
    boot = Boot(master.board, assignment.slot, master.workforce.slots.barrier, assignment.generation, master.settings)
    boot.begin(assignment.backoff)
    boot.load()
    _boot[:] = [boot]


def post_worker_init(worker: Any) -> None:
    """Warm, prove, wait for the others; gunicorn calls `run()` next, which accepts."""
    _boot_signals(worker)  # gunicorn's handler of TERM only sets a flag that nobody reads before `run()`
    if not worker.alive or getattr(worker, "asked_ns", None):  # and may have done so already
        signal.raise_signal(signal.SIGTERM)  # the end that it would have been: the master knows that somebody has asked for it
    boot = _boot.pop()
    boot.warm()
    exchange = getattr(worker, "exchange", None) or through_app(worker.wsgi)
    most, worker.max_requests = worker.max_requests, sys.maxsize  # the requests of our own do not count
    boot.prove(serving.current(), getattr(worker, "callers", worker.cfg.threads), exchange)
    worker.nr, worker.max_requests = 0, most
    boot.wait()
    worker.init_signals()
    boot.open(deadline_in(worker.cfg.timeout))
    worker.notify = renewing(worker.notify, worker.cfg.timeout)


def _boot_signals(worker: Any) -> None:
    """A worker that boots or stands by ends by any signal, but for USR1: by that all are told to open their logs anew."""
    processes.default_signals()
    signal.signal(signal.SIGUSR1, worker.handle_usr1)


def renewing(notify: Callable[[], None], seconds: float) -> Callable[[], None]:
    """gunicorn's sign of life, of whatever class its worker is, put on the page as well."""

    def both() -> None:
        notify()
        serving.current().renew(seconds)

    return both


def worker_exit(_arbiter: Arbiter, worker: Any) -> None:
    """Leave without exit handlers and destructors. gunicorn also calls this in the master, for a worker that is gone."""
    if worker.pid == os.getpid():
        ending = sys.exc_info()[1]
        status = ending.code if isinstance(ending, SystemExit) and isinstance(ending.code, int) else 0
        if status == 0:
            serving.current().leave()
        leave(status)
