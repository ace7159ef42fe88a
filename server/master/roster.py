"""Which worker belongs where, and why one ended: the master's view of its workers, worker by worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

from server.exits import ExitError, ModelError, ResourceError, by_status
from server.models.generation import Generation
from server.scoreboard import Scoreboard, now_ms, unpack
from server.states import BOOTING, State

FRESH_SECONDS = 5.0
"""A worker that crashes so soon after it has opened is a failed boot to those that come after it."""
_ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


@dataclass
class Assignment:
    """What a worker was forked for."""

    generation: Generation
    slot: int | None
    """None: there was no room, or the master was unfit to fork; the child leaves at once."""
    gpu: int = 0
    """The index of its GPU, as its slot has it; 0 where there are none."""
    backoff: float = 0.0
    """Seconds that it waits before it boots."""
    refused: str = ""
    """Why it has no slot."""
    retired: bool = False
    """Its place goes with it: when it has ended, one worker fewer is wanted."""
    spent: bool = False
    """It has served enough: its place is another's, and it is told to leave once that one takes traffic."""
    failures: int = 0
    """How many had failed there one after another when it was forked."""
    opened: tuple[State, float] | None = None
    """In which state it was seen open, and since when."""

    @property
    def fresh(self) -> bool:
        """Whether it has not been open, or taken traffic, for long: what ends it now may end whoever takes its place as well."""
        return self.opened is None or time.monotonic() < self.opened[1] + FRESH_SECONDS


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended."""

    state: State
    """The state that it was in."""
    error: ExitError
    """What this end would be to a first generation."""
    blameless: bool = False
    """Whether somebody asked it to end: nothing is wrong with the model."""

    @property
    def booting(self) -> bool:
        """Whether it never became ready."""
        return self.state in BOOTING or self.state is State.FAILED

    @property
    def crash(self) -> bool:
        """Whether it was open, and ended of what it did itself: nobody has asked for it or killed it from outside."""
        return self.state in (State.ACTIVE, State.STANDBY) and not self.blameless and isinstance(self.error, ModelError)


def watch(pids: Iterable[int]) -> dict[int, signal.Signals | int]:
    """How each of `pids` that has ended did so: a signal or an exit status. Leaves their statuses for gunicorn to take."""
    ends: dict[int, signal.Signals | int] = {}
    for pid in pids:
        try:
            info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            continue
        if info:
            ends[pid] = info.si_status if info.si_code == os.CLD_EXITED else signal.Signals(info.si_status)
    return ends


def end_of(board: Scoreboard, slot: int, how: signal.Signals | int | None, boot_timeout: float) -> End:
    """Work out why the worker of `slot` ended, from its slot and from how the kernel saw it end."""
    state, deadline = unpack(int(board.slots["word"][slot]))
    doing = board.slots["doing"][slot].decode(errors="replace")
    if state is State.FAILED:
        return End(state, by_status(int(board.slots["status"][slot]), doing))
    name = f"worker {slot} ({state.name.lower()})"
    at = f" at {doing}" if doing else ""
    if state in BOOTING and now_ms() >= deadline - 1:
        return End(state, ModelError(f"{name}: hung for more than {boot_timeout:g} s{at} (WARMFORK_BOOT_TIMEOUT)"))
    if state is State.DRAINING and not how:
        return End(state, ModelError(f"{name}: ended"), blameless=True)
    if how is None:  # it ended between our look and gunicorn's; trying again may help
        return End(state, ResourceError(f"{name}: ended{at}"))
    if isinstance(how, signal.Signals):
        kind = ResourceError if how is signal.SIGKILL else ModelError
        return End(state, kind(f"{name}: killed by {how.name}{at}"), how in _ASKED)
    return End(state, ModelError(f"{name}: ended with status {how}{at}"))
