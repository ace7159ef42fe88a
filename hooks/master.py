"""The hooks that gunicorn runs in the master: start, before each fork, after each end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from gunicorn.arbiter import Arbiter

from hooks import signals
from server.exits import AskedToStopError, ConfigurationError, ExitError, ResourceError, leave
from server.master.keeper import bound
from server.master.master import Master
from server.master.predecessor import Predecessor
from server.settings import Settings

master: Master

_log = logging.getLogger("gunicorn.error")


def settings() -> Settings:
    """Read the settings for `gunicorn.conf.py`; a wrong one ends the start in one line."""
    try:
        return Settings.read(os.environ)
    except ConfigurationError as error:
        if predecessor := Predecessor.find(os.environ):
            predecessor.say("failed", str(error))
        leave(error)


def on_starting(arbiter: Arbiter) -> None:
    """Before anything is loaded: the shared page, and the process that answers the probes."""
    global master  # noqa: PLW0603 - gunicorn's hooks are functions; what they share has to live somewhere
    with _starting(arbiter):
        read = settings()
        if not arbiter.master_pid and "LISTEN_FDS" not in os.environ:  # else an older master or systemd has bound it
            bound(read.bind, "WARMFORK_BIND").close()
        master = Master(read)
    signals.hold_around_forks()


def when_ready(arbiter: Arbiter) -> None:
    """The listener is bound: try, load and prove the models, then let gunicorn fork."""
    with _starting(arbiter):
        master.first()
    signals.install(arbiter, master)


def pre_fork(_arbiter: Arbiter, worker: Any) -> None:
    """Give the worker its slot, its generation and its deadline."""
    master.fork(worker)


def child_exit(_arbiter: Arbiter, worker: Any) -> None:
    """Take the slot back and decide what the end means."""
    try:
        master.ended(worker, signals.ends.pop(worker.pid, None))
    except Exception:  # noqa: BLE001 - a defect of ours must not end a server that serves
        _log.exception("child_exit failed for worker %s", worker.pid)


def pre_exec(arbiter: Arbiter) -> None:
    """In the child that becomes a new master: leave it what it inherits, in the environment that it gets."""
    environ = arbiter.cfg.env_orig
    master.bequeath(environ, systemd=arbiter.systemd)
    if arbiter.systemd:  # whose sockets are no longer where LISTEN_FDS would say
        arbiter.systemd = False
        environ.pop("LISTEN_FDS", None)
    signals.default()


def on_exit(_arbiter: Arbiter) -> None:
    """gunicorn has stopped: end the management process, then leave without the destructors of what the models brought."""
    master.keeper.stop()
    logging.shutdown()
    os._exit(master.status)


@contextmanager
def _starting(arbiter: Arbiter) -> Iterator[None]:
    """End the whole process if what is inside fails or is told to stop, without the destructors of what the models brought."""
    try:
        with signals.end_at_once(arbiter):
            yield
    except AskedToStopError:
        _leave(arbiter, 0)
    except ExitError as error:
        _log.error("%s", error)
        if "master" in globals():
            master.failed(str(error))
        _leave(arbiter, error.status)
    except Exception:  # noqa: BLE001 - a defect of ours, or a machine at its end; in either case somebody has to look
        _log.exception("the start failed")
        _leave(arbiter, ResourceError.status)


def _leave(arbiter: Arbiter, status: int) -> NoReturn:
    """What gunicorn does not do when a start ends in a hook."""
    if "master" in globals():
        master.keeper.stop()
    for listener in arbiter.LISTENERS:
        listener.close()
    if arbiter.pidfile is not None:
        arbiter.pidfile.unlink()
    logging.shutdown()
    os._exit(status)
