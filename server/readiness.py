"""The verdicts that probes ask for, each computed from what the page says now: pure functions, nothing remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.notice import Notice
from server.scoreboard import Snapshot
from server.states import BOOTING, Phase, State

GRACE = 10_000
"""Milliseconds past its deadline after which a worker that still exists has outlived its own end."""

PROVEN = (State.WAITING, State.ACTIVE, State.STANDBY)
"""The states of a worker whose proof is behind it."""

Alive = Callable[[int], bool]
"""Whether a process id is a child of the master that has not ended."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and why: `reasons` is empty exactly when `ready`."""

    ready: bool
    reasons: tuple[str, ...]


def verdict(snapshot: Snapshot, ready_min: int, alive: Alive) -> Verdict:
    """Whether requests will be answered: open by quorum, not going away, at least `ready_min` workers that take traffic."""
    reasons = []
    if not snapshot.header["generation"]:
        reasons.append(f"no generation has opened yet: {_phase(snapshot)}")
    if Phase(int(snapshot.header["phase"])) in (Phase.DRAINING, Phase.STOPPING):
        reasons.append(f"the server is going away: {_phase(snapshot)}")
    active = [index for index, state, _ in _workers(snapshot) if state is State.ACTIVE]
    faults = [fault for index in active if (fault := _fault(snapshot, index, alive))]
    serving = len(active) - len(faults)
    if serving < ready_min:
        reasons += [f"workers that take traffic: {serving}, must be at least {ready_min}", *faults]
    return _judge(reasons)


def live(snapshot: Snapshot, alive: Alive) -> Verdict:
    """Whether a restart of the whole server is not called for: its loop turns, and no worker has outlived its own end."""
    reasons = []
    late = snapshot.now_ms - int(snapshot.header["deadline_ms"])
    if snapshot.header["deadline_ms"] and late > 0:
        reasons.append(f"the master's loop is {late / 1000:.1f} s past its deadline")
    for index, state, deadline in _workers(snapshot):
        late, pid = snapshot.now_ms - deadline, int(snapshot.slots["pid"][index])
        if late > GRACE and alive(pid):
            what = f"worker {index} (pid {pid}, {state.name.lower()}) is {late / 1000:.1f} s past its deadline"
            reasons.append(f"{what} and still exists, {GRACE // 1000} s is the bound")
    return _judge(reasons)


def started(snapshot: Snapshot, notice: Notice) -> Verdict:
    """Whether the first generation has opened; before, the reasons say how far the start is and what is missing."""
    if snapshot.header["generation"]:
        return Verdict(ready=True, reasons=())
    building = int(snapshot.header["building"])
    workers = [(index, state) for index, state, _ in _workers(snapshot) if snapshot.slots["generation"][index] == building]
    proven = sum(state in PROVEN for _, state in workers)
    wanted = int(snapshot.header["active"]) + int(snapshot.header["standby"])
    reasons = [_phase(snapshot)]
    if notice.doing:
        reasons.append(notice.doing)
    reasons.append(f"workers proven: {proven} of {wanted}")
    for index, state in workers:
        if state in BOOTING or state is State.FAILED:
            doing = text(snapshot.slots["doing"][index])
            reasons.append(f"worker {index}: {state.name.lower()}" + (f", {doing}" if doing else ""))
    return _judge([*reasons, *notice.reasons])


def text(field: bytes) -> str:
    """Read a text field of the page. A writer may be at work on it, so anything is readable."""
    return bytes(field).decode(errors="replace")


def phase_seconds(snapshot: Snapshot) -> float:
    """How long the server has been in its phase; from the start of the master on where it has not left the first."""
    since = int(snapshot.header["phase_since_ns"]) or int(snapshot.header["started_ns"])
    return max(snapshot.now_ms - since // 1_000_000, 0) / 1000


def _judge(reasons: list[str]) -> Verdict:
    return Verdict(ready=not reasons, reasons=tuple(reasons))


def _phase(snapshot: Snapshot) -> str:
    return f"{Phase(int(snapshot.header['phase'])).name.lower()} for {phase_seconds(snapshot):.1f} s"


def _workers(snapshot: Snapshot) -> Iterator[tuple[int, State, int]]:
    """The slots in use: index, state, deadline in milliseconds."""
    for index in range(len(snapshot.slots)):
        state, deadline = snapshot.state(index)
        if state is not State.EMPTY:
            yield index, state, deadline


def _fault(snapshot: Snapshot, index: int, alive: Alive) -> str:
    """Why a worker that says it is active does not count, or nothing."""
    late, pid = snapshot.now_ms - snapshot.state(index)[1], int(snapshot.slots["pid"][index])
    if late >= 0:
        return f"worker {index} (pid {pid}) is {late / 1000:.1f} s past its deadline"
    return "" if alive(pid) else f"worker {index} (pid {pid}) has ended"
