"""The shared page: one header and one slot per worker, in a memfd that every process of the server maps.

One writer per field, no lock: a process may die at any instant and no reader waits for it or sees half a state. What must
not be torn is one aligned 64-bit word, which numpy stores at once. "Scoreboard" is Apache httpd's word for the same thing.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.states import Event, Phase, State, move

MAX_MODELS = 32
"""In a repository."""
MODEL_PLACES = 2 * MAX_MODELS
"""A generation that comes may have no model in common with the one that serves."""
MAX_SHAPES = 64
MAX_BATCH_SIZES = 64
MAX_AXES = 8
COLD_SHAPES = 8
TEXT = 1 << 20
"""Bytes of each half of the notice: what the numbers mean, as JSON (see `server/notice.py`)."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the request-duration histogram, in seconds; one more bucket holds what is longer."""

NEVER = (1 << 56) - 1
"""The deadline of a state that has none."""

# Written by the master alone.
HEADER = np.dtype(
    [
        ("master", np.uint64),
        ("started_ns", np.uint64),
        ("generation", np.uint64),  # the newest that has opened; 0 before the first
        ("building", np.uint64),  # the one being made; 0 when none is
        ("rehearsing", np.uint64),  # the newest whose workers may begin the synthetic load
        ("phase", np.uint64),
        ("phase_since_ns", np.uint64),
        ("deadline_ms", np.uint64),  # when the master's loop must have turned again
        ("heard_ns", np.uint64),  # every signal that came before is handled
        ("active", np.uint32),  # how many workers should take traffic
        ("standby", np.uint32),  # how many should be held back
        ("notice", np.uint64),  # serial << 32 | length of the text in half (serial & 1)
        ("names", "S96", (MODEL_PLACES,)),  # "model/version"; an index never changes while the master lives
    ],
    align=True,
)

# Written by the worker that holds the slot.
MODEL = np.dtype(
    [
        ("success", np.uint64),
        ("success_ns", np.uint64),
        ("fail", np.uint64),
        ("fail_ns", np.uint64),
        ("rows", np.uint64),
        ("batches", np.uint64),
        ("queue_ns", np.uint64),
        ("input_ns", np.uint64),
        ("infer_ns", np.uint64),
        ("output_ns", np.uint64),
        ("last_ms", np.uint64),  # wall clock, for people
        ("cold", np.uint64),
        ("cold_shapes", np.int32, (COLD_SHAPES, MAX_AXES)),  # lengths of the free axes, the rest 0
        ("sizes", [("size", np.uint64), ("count", np.uint64), ("ns", np.uint64)], (MAX_BATCH_SIZES,)),
        ("shapes", [("first_ms", np.float32), ("steady_ms", np.float32)], (MAX_SHAPES,)),
    ],
    align=True,
)

SLOT = np.dtype(
    [
        # The master at a fork and after an end, the worker in between.
        ("word", np.uint64),  # state << 56 | deadline in milliseconds of the monotonic clock
        # The master.
        ("generation", np.uint64),
        ("role", np.uint64),
        ("leave", np.uint64),  # 1: the TERM that comes with it is the master's own
        ("missed", np.uint64),  # 1: it replaces a worker that took traffic, and whose place nobody else could take
        ("forked_ns", np.uint64),
        ("failures", np.uint64),  # boots that failed one after another on its device
        ("gpu", np.uint64),  # its index among those of the settings, where there are any
        ("turn", np.uint64),  # see `server/master/turns.py`
        # The worker.
        ("pid", np.uint64),
        ("barrier", np.uint64),  # the last point of the barrier that it has reached
        ("spent", np.uint64),  # 1: it has served as many requests as it should, and asks for another in its place
        ("status", np.uint64),  # in FAILED, the exit status of the contract
        ("device", "S16"),
        ("gpu_bytes", np.uint64),  # what it takes of that
        ("doing", "S256"),  # the model, shape and step at hand; in FAILED, what failed
        ("connections", np.uint64),  # open ones, as of the last tick of its loop
        ("waiting", np.uint64),  # requests that wait for their batch, as of then
        ("phases", np.float64, (len(State),)),  # seconds spent in each state
        # The worker; these outlive it, so that no counter of the server falls.
        ("requests", np.uint64),
        ("errors", np.uint64),
        ("durations", np.uint64, (len(BUCKETS) + 1,)),
        ("duration_sum", np.float64),
        ("models", MODEL, (MODEL_PLACES,)),
    ],
    align=True,
)

# PERF: a slot is 150 kilobytes, nearly all of it counters that no probe asks for.
_GLANCE = np.dtype([(name, SLOT[name]) for name in ("word", "pid", "generation", "doing")])
_WORD = 8
"""Bytes of most fields; each of those lies at a multiple of it."""

Record = np.void
Records = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the numbers, taken at `now_ms` of the monotonic clock."""

    header: Record
    slots: Records
    now_ms: int

    def state(self, index: int) -> tuple[State, int]:
        """Return the state of a slot and its deadline in milliseconds of the monotonic clock."""
        return unpack(int(self.slots["word"][index]))

    @property
    def workers(self) -> list[tuple[int, int]]:
        """By slot, the state and the pid."""
        return list(zip((self.slots["word"] >> np.uint64(56)).tolist(), self.slots["pid"].tolist(), strict=True))


def word(*path: str | int) -> int:
    """Where in the words of a slot a field stands: `word("requests")`, `word("models", 3, "rows")`."""
    kind: np.dtype[Any] = SLOT
    place = 0
    for step in path:
        if isinstance(step, str):
            fields: Any = kind.fields
            kind, offset = fields[step][:2]
            place += offset
        else:
            kind = kind.base
            place += step * kind.itemsize
    return place // _WORD


def pack(state: State, deadline_ms: int) -> int:
    """Put a state and its deadline into one word."""
    return int(state) << 56 | min(deadline_ms, NEVER)


def unpack(word: int) -> tuple[State, int]:
    """Take a state and its deadline out of one word."""
    return State(word >> 56), word & NEVER


def now_ms() -> int:
    """Milliseconds of the monotonic clock, which all processes of a machine share."""
    return time.monotonic_ns() // 1_000_000


class Scoreboard:
    """A mapping of the shared page. `fd` may be handed to another process, over exec too."""

    def __init__(self, fd: int) -> None:
        """Map the page behind `fd`, as made by `create`, and own `fd` from now on."""
        self.fd = fd
        weakref.finalize(self, os.close, fd)
        size = os.fstat(fd).st_size
        self.memory = mmap.mmap(fd, size)
        count = (size - HEADER.itemsize - 2 * TEXT) // SLOT.itemsize
        self.header: Records = np.frombuffer(self.memory, HEADER, count=1)
        self.slots: Records = np.frombuffer(self.memory, SLOT, count=count, offset=HEADER.itemsize)
        self.text = memoryview(self.memory)[HEADER.itemsize + count * SLOT.itemsize :]

    @classmethod
    def create(cls, slots: int) -> Scoreboard:
        """Make a page of zeros with room for `slots` workers."""
        fd = os.memfd_create("warmfork", os.MFD_CLOEXEC)
        os.ftruncate(fd, HEADER.itemsize + slots * SLOT.itemsize + 2 * TEXT)
        board = cls(fd)
        board.set("master", os.getpid())
        board.set("started_ns", time.monotonic_ns())
        return board

    def get(self, field: str) -> int:
        """Read one number of the header."""
        return int(self.header[field][0])

    def set(self, field: str, value: int) -> None:
        """Write one number of the header. The master alone does so."""
        self.header[field][0] = value

    def enter(self, phase: Phase) -> None:
        """Say where the server stands now. The master alone does so."""
        if self.get("phase") != phase:
            self.set("phase_since_ns", time.monotonic_ns())
            self.set("phase", phase)

    @property
    def phase(self) -> Phase:
        """Where the server stands."""
        return Phase(self.get("phase"))

    def state(self, index: int) -> State:
        """The state of one slot."""
        return unpack(int(self.slots["word"][index]))[0]

    def states(self) -> npt.NDArray[np.uint64]:
        """The states of all slots, as numbers."""
        return self.slots["word"] >> np.uint64(56)

    def move(self, index: int, event: Event, deadline_ms: int = NEVER) -> State:
        """Move one slot by `event` and set the deadline of its new state; raise `IllegalMoveError` if there is no such move."""
        state = move(self.state(index), event)
        self.slots["word"][index] = pack(state, deadline_ms)
        return state

    def renew(self, index: int, deadline_ms: int) -> None:
        """Put off the deadline of the state that a slot is in."""
        self.slots["word"][index] = pack(self.state(index), deadline_ms)

    def words(self, index: int) -> tuple[memoryview[int], memoryview[float]]:
        """One slot as words, as integers and as floats: adding to one of these costs a tenth of what it does through numpy."""
        start = HEADER.itemsize + index * SLOT.itemsize
        slot = memoryview(self.memory)[start : start + SLOT.itemsize]
        return slot.cast("Q"), slot.cast("d")

    def model_index(self, key: str) -> int | None:
        """The index under which the counters of "model/version" stand, or None."""
        found = np.flatnonzero(self.header["names"][0] == key.encode())
        return int(found[0]) if found.size else None

    def glance(self) -> Snapshot:
        """Copy what the verdicts of `server/readiness.py` need, and nothing else."""
        return Snapshot(self.header[0].copy(), self._fields(_GLANCE), now_ms())

    def snapshot(self) -> Snapshot:
        """Copy the numbers. Counters of one slot may be an instant apart, but what came before a state is there with it."""
        header, slots = self.header[0].copy(), self._fields(SLOT)
        # PERF: 150 kilobytes a slot, of which each model that was ever served uses two.
        for index in np.flatnonzero(header["names"]):
            slots["models"][:, index] = self.slots["models"][:, index]
        return Snapshot(header, slots, now_ms())

    def _fields(self, kind: np.dtype[Any]) -> Records:
        """Copy those of a slot's fields that `kind` has, the word first; not what is counted by model."""
        slots = np.zeros(len(self.slots), kind)
        for name in kind.names or ():
            if name != "models":
                slots[name] = self.slots[name]
        return slots
