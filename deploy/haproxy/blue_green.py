"""The command line: `python3 -m deploy.haproxy.blue_green -- COMMAND` starts a server beside the one that serves, and shifts."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from types import FrameType

from deploy.haproxy import options
from deploy.haproxy.bounds import Bounds
from deploy.haproxy.process import Master, Started
from deploy.haproxy.roles import RefusedError, alone, free, master_of, roles
from deploy.haproxy.runtime_api import RuntimeApi, RuntimeApiError
from deploy.haproxy.shift import TURN, Shift, ShiftError, say

_asked: list[int] = []
"""Signals that came."""


def main() -> int:
    """0: the new server serves; 1: it does not, and what was before is again; 2: nothing was begun."""
    parser = options.parser()
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ask)
    api = RuntimeApi(given.socket, given.backend)
    try:
        with alone(given.socket.parent):
            old, new = roles(api)
            master = master_of(old, given.keep_old)
            if given.command:
                free(new)
            return _run(Shift(api, old, new, _pause), master, given)
    except (RefusedError, RuntimeApiError) as error:
        parser.exit(2, f"blue_green: refused: {error}\n")


def _run(shift: Shift, master: Master | None, given: argparse.Namespace) -> int:
    old, new = shift.old, shift.new
    try:
        _shift(shift, given)
    except Exception as error:  # noqa: BLE001 - whatever it is, what served serves on
        serves = shift.back(given.stop_timeout)
        sys.stderr.write(f"blue_green: failed: {error}; {serves}\n")
        return 1
    say(f"{new.name} serves, {old.name} takes no requests")
    if master is None:
        return 0
    try:
        ended = _end(shift, master, given)
    except (ShiftError, RuntimeApiError, PermissionError) as error:
        sys.stderr.write(f"blue_green: {old.name} runs on: {error}\n")
        return 0
    say(f"{old.name} has ended" if ended else f"{old.name} runs on {given.stop_timeout:g} s after TERM")
    return 0


def _end(shift: Shift, master: Master, given: argparse.Namespace) -> bool:
    """Keep the old server for as long as was said, then end it; whether it has ended.

    Raises `ShiftError` if it takes requests again, or somebody asks to stop: then it runs on.
    """
    end = time.monotonic() + given.keep_old
    while not master.ended():
        over = time.monotonic() >= end
        try:
            if shift.api.traffic(shift.old.name).taken:
                message = "it takes requests again"
                raise ShiftError(message)
        except RuntimeApiError:  # HAProxy may be restarted meanwhile, and forget who was drained
            if over:
                raise
        _pause(0 if over else TURN)
        if over:
            return master.stop(given.stop_timeout)
    return True


def _shift(shift: Shift, given: argparse.Namespace) -> None:
    old, new = shift.old, shift.new
    say(f"{old.name} serves at {old.bind}, {new.name} comes to {new.bind}")
    p95 = given.p95_ms / 1000 if given.p95_ms else given.p95_factor * shift.measure(given.baseline, given.requests)
    bounds = Bounds(p95, given.failed, given.requests)
    shift.api.set({new.name: "state maint"})
    if given.command:
        try:
            shift.started = Started(given.command, new)
        except OSError as error:
            message = f"{given.command[0]}: {error.strerror}"
            raise ShiftError(message) from None
    shift.prove(given.start_timeout)
    say(f"{new.name} is proven; p95 may be {p95 * 1000:.1f} ms, {given.failed:.2%} may fail")
    shift.open()
    for percent in given.steps:
        say(f"{new.name} gets {percent:g} %")
        shift.give(percent)
        shift.watch(given.step_seconds, bounds)
    say(f"{new.name} gets all, and is watched for {given.bake:g} s")
    shift.give(100)
    if undecided := bounds.undecided(shift.watch(given.bake, bounds)):
        message = f"{new.name}: {undecided}"
        raise ShiftError(message)
    shift.api.set({old.name: "state drain"})


def _ask(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)


def _pause(seconds: float) -> None:
    """Sleep. Raises `ShiftError` if a signal has asked to stop."""
    end = time.monotonic() + seconds
    while True:
        if _asked:
            message = f"asked to stop by {signal.Signals(_asked[0]).name}"
            raise ShiftError(message)
        if (left := end - time.monotonic()) <= 0:
            return
        time.sleep(min(left, TURN))


if __name__ == "__main__":
    sys.exit(main())
