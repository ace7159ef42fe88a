"""The hooks that gunicorn runs in the master: start, before each fork, after each end."""

from __future__ import annotations

import logging
import os
from typing import Any

from gunicorn.arbiter import Arbiter

from hooks import signals
from server.exits import AskedToStopError, ConfigurationError, ExitError, ResourceError, leave
from server.master.keeper import bound
from server.master.master import Master
from server.settings import Settings

master: Master

_log = logging.getLogger("gunicorn.error")


def settings() -> Settings:
    """Read the settings for `gunicorn.conf.py`; a wrong one ends the start in one line."""
    try:
        return Settings.read(os.environ)
    except ConfigurationError as error:
        leave(error)


def on_starting(arbiter: Arbiter) -> None:
    """Before anything is loaded: the shared page, and the process that answers the probes."""
    global master  # noqa: PLW0603 - gunicorn's hooks are functions; what they share has to live somewhere
    try:
        read = settings()
        _check_device(read)
        if not {"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ):  # else the listener is handed on
            bound(read.bind, "WARMFORK_BIND").close()
        master = Master(read)
        master.start()
    except ExitError as error:
        _abandon(arbiter, error)
    signals.hold_around_forks()
    address = master.keeper.socket.getsockname()
    _log.info("Management at: http://%s:%d (%d)", address[0], address[1], master.keeper.pid)


def when_ready(arbiter: Arbiter) -> None:
    """The listener is bound: try, load and prove the models, then let gunicorn fork."""
    try:
        with signals.end_at_once():
            master.first(arbiter)
    except ExitError as error:
        _abandon(arbiter, error)
    except AskedToStopError:
        _close(arbiter)
        raise
    signals.install(arbiter, master)


def pre_fork(_arbiter: Arbiter, worker: Any) -> None:
    """Give the worker its slot, its generation and its deadline."""
    master.fork(worker)


def child_exit(arbiter: Arbiter, worker: Any) -> None:
    """Take the slot back and decide what the end means."""
    try:
        master.ended(arbiter, worker, signals.ends.pop(worker.pid, None))
    except Exception:  # noqa: BLE001 - a defect of ours must not end a server that serves
        _log.exception("child_exit failed for worker %s", worker.pid)


def pre_exec(_arbiter: Arbiter) -> None:
    """Before USR2's exec, in the child: a blocked signal would stay blocked in the new master."""
    signals.release()


def on_exit(_arbiter: Arbiter) -> None:
    """gunicorn has stopped: end the management process, then leave without the destructors of what the models brought."""
    master.keeper.stop()
    logging.shutdown()
    os._exit(master.status)


def _check_device(read: Settings) -> None:
    if read.device.startswith("cuda"):
        message = f"WARMFORK_DEVICE={read.device}: no engine here runs on CUDA, only on the CPU"
        raise ResourceError(message)


def _close(arbiter: Arbiter) -> None:
    """What gunicorn does not do when a start ends in a hook."""
    if "master" in globals():
        master.keeper.stop()
    for listener in arbiter.LISTENERS:
        listener.close()
    if arbiter.pidfile is not None:
        arbiter.pidfile.unlink()


def _abandon(arbiter: Arbiter, error: ExitError) -> None:
    _log.error("%s", error)
    _close(arbiter)
    logging.shutdown()
    os._exit(error.status)
