"""The answer of `/status`: what it has, and how it is read from the page."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from server.management.memory import Memory
from server.management.view import View
from server.notice import ModelNotice
from server.readiness import phase_seconds, text
from server.scoreboard import Record, Snapshot
from server.states import BOOTING, Phase, Role, State


class Latency(msgspec.Struct, frozen=True):
    """How long one warmed shape took: at first, and once it had settled; None before that."""

    first_ms: float
    steady_ms: float | None


class Worker(msgspec.Struct, frozen=True):
    """One worker, dead ones that still hold a slot included. The counters are the slot's, since the master started."""

    slot: int
    pid: int
    generation: int
    role: str
    state: str
    device: str
    doing: str
    phases: dict[str, float]
    """Seconds by state since the fork; in the states before a worker has opened, the one at hand included."""
    models: dict[str, dict[str, Latency]]
    """By "name/version" and shape."""
    memory: Memory
    gpu_bytes: int
    """What it takes of its GPU's memory, the CUDA context included."""
    connections: int
    """Open ones, a quarter of a second ago at most."""
    waiting: int
    """Requests that waited for a batch then."""
    requests: int
    errors: int
    batches: int
    cold_dispatches: int


class Model(msgspec.Struct, frozen=True):
    """One model of one generation, as the trial found it."""

    generation: int
    name: str
    version: int
    platform: str
    rung: str
    why: str
    batched: bool
    shapes: list[dict[str, int]]
    private_bytes: int
    device: str
    """What it runs on: `cpu`, or `cuda` on the GPU of each worker."""
    graphs: bool
    """Whether its shapes are recorded as CUDA graphs there."""
    precision: str
    difference: float | None
    """The largest difference from float32 on any sample; None where it calculates in that."""
    compile_seconds: float | None
    """What compiling all shapes took in the trial, or finding them compiled; None where nothing is compiled."""


class Targets(msgspec.Struct, frozen=True):
    """How many workers there should be, by role."""

    active: int
    standby: int


class Status(msgspec.Struct, frozen=True):
    """Everything."""

    generation: int
    """The newest that has opened; 0 before the first."""
    building: int
    """The one being made; 0 when none is."""
    phase: str
    phase_seconds: float
    uptime_seconds: float
    ready: bool
    reasons: list[str]
    """Why it is not ready, and why the last reload, and the last hand-over, was refused."""
    doing: str
    targets: Targets
    models: list[Model]
    workers: list[Worker]


def report(view: View) -> Status:
    """Read the page once and put it into words."""
    (snapshot, verdict), notice = view.judge(view.board.snapshot), view.notice()
    header = snapshot.header
    used = [index for index in range(len(snapshot.slots)) if snapshot.state(index)[0] is not State.EMPTY]
    memory = view.memory.read(pid for index in used if view.alive(pid := int(snapshot.slots["pid"][index])))
    return Status(
        generation=int(header["generation"]),
        building=int(header["building"]),
        phase=Phase(int(header["phase"])).name.lower(),
        phase_seconds=phase_seconds(snapshot),
        uptime_seconds=max(snapshot.now_ms - int(header["started_ns"]) // 1_000_000, 0) / 1000,
        ready=verdict.ready,
        reasons=[*verdict.reasons, *notice.reasons],
        doing=notice.doing,
        targets=Targets(int(header["active"]), int(header["standby"])),
        models=[_model(number, model) for number, models in sorted(notice.generations.items()) for model in models],
        workers=[_worker(snapshot, index, notice.generations, memory) for index in used],
    )


def shape_label(shape: Mapping[str, int]) -> str:
    """Name a warmed shape by its free axes: "batch=8,length=128"; "fixed" where it has none."""
    return ",".join(f"{axis}={length}" for axis, length in shape.items()) or "fixed"


def _model(generation: int, model: ModelNotice) -> Model:
    fields = msgspec.structs.asdict(model)
    del fields["index"]
    return Model(generation=generation, **fields)


def _worker(snapshot: Snapshot, index: int, generations: Mapping[int, list[ModelNotice]], memory: Mapping[int, Memory]) -> Worker:
    slot = snapshot.slots[index]
    pid, generation = int(slot["pid"]), int(slot["generation"])
    return Worker(
        slot=index,
        pid=pid,
        generation=generation,
        role=Role(int(slot["role"])).name.lower(),
        state=snapshot.state(index)[0].name.lower(),
        device=text(slot["device"]),
        doing=text(slot["doing"]),
        phases=_phases(snapshot, index),
        models={
            f"{model.name}/{model.version}": _latencies(slot["models"][model.index], model)
            for model in generations.get(generation, [])
        },
        memory=memory.get(pid, Memory()),
        gpu_bytes=int(slot["gpu_bytes"]),
        connections=int(slot["connections"]),
        waiting=int(slot["waiting"]),
        requests=int(slot["requests"]),
        errors=int(slot["errors"]),
        batches=int(slot["models"]["batches"].sum()),
        cold_dispatches=int(slot["models"]["cold"].sum()),
    )


def _phases(snapshot: Snapshot, index: int) -> dict[str, float]:
    slot, (state, _) = snapshot.slots[index], snapshot.state(index)
    seconds: dict[State, float] = {each: float(slot["phases"][each]) for each in State if each is not State.EMPTY}
    if state in BOOTING and slot["forked_ns"]:
        # The worker writes a state down when it leaves it; a page that follows a start wants the one at hand to grow.
        since_fork = snapshot.now_ms / 1000 - int(slot["forked_ns"]) / 1e9
        before = sum(spent for each, spent in seconds.items() if each is not state)
        seconds[state] = max(seconds[state], since_fork - before)
    return {each.name.lower(): round(spent, 3) for each, spent in seconds.items() if spent > 0}


def _latencies(record: Record, model: ModelNotice) -> dict[str, Latency]:
    # A shape that has not been run yet is still at zero.
    return {
        shape_label(shape): Latency(round(first, 3), round(steady, 3) if steady > 0 else None)
        for shape, (first, steady) in zip(model.shapes, record["shapes"].tolist(), strict=False)
        if first > 0
    }
