"""Who has which slot of the scoreboard, and on which GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from server.barrier import Barrier
from server.master.backoff import Backoff
from server.master.placement import placed
from server.scoreboard import Scoreboard, now_ms, unpack
from server.states import BOOTING, Event, Role, State

OWN_END_SECONDS = 5
"""How long after its boot deadline a worker that should have ended itself is killed."""


class Slots:
    """Given out at a fork, taken back at an end. The master alone uses this."""

    def __init__(self, board: Scoreboard, boot_timeout: float, gpus: int = 0) -> None:
        """Give out the slots of `board` to workers that boot within `boot_timeout` seconds, on so many `gpus`."""
        self.board = board
        self.barrier = Barrier()
        self.boot_timeout = boot_timeout
        self.gpus = gpus
        self.vacated = 0
        """The GPU of the worker that has ended last."""
        self.backoff = Backoff()
        self.missed = 0
        """Workers that took traffic and ended without the master's wish, in whose place nobody has come yet."""

    def take(self, generation: int, role: Role) -> int | None:
        """Give a free slot to a worker of `generation` that is about to be forked; None where there is none."""
        free = [index for index in range(len(self.board.slots)) if self.board.state(index) is State.EMPTY]
        if not free:
            return None
        index = free[0]
        self.barrier.add(index)
        slot = self.board.slots[index]
        for field in ("pid", "barrier", "leave", "spent", "turn", "phases", "status", "gpu_bytes"):
            slot[field] = 0
        slot["device"] = slot["doing"] = b""
        slot["gpu"] = gpu = self.next_gpu(generation)
        slot["models"]["shapes"] = 0
        slot["generation"] = generation
        slot["role"] = role
        slot["missed"] = role is Role.ACTIVE and self.fill()
        slot["failures"] = self.backoff.failures[gpu]
        slot["forked_ns"] = time.monotonic_ns()
        self.board.move(index, Event.FORK, now_ms() + int((self.backoff.seconds(gpu) + self.boot_timeout) * 1000))
        return index

    def next_gpu(self, generation: int) -> int:
        """The GPU of the next worker of a generation, by its index; 0 where there are none."""
        return next(self.coming_gpus(generation), 0)

    def coming_gpus(self, generation: int) -> Iterator[int]:
        """The GPUs of the next workers of a generation, one after another, by their indices; empty where there are none.

        Whoever leaves, or is to be replaced, has gone from his already.
        """
        if not self.gpus:
            return iter(())
        slots, states = self.board.slots, self.board.states()
        leaving = (states == State.DRAINING) | (slots["leave"] > 0) | (slots["spent"] > 0)
        stay = (states != State.EMPTY) & ~leaving
        own = slots["gpu"][stay & (slots["generation"] == generation)]
        vacated = slots["gpu"][(states != State.EMPTY) & leaving].tolist() or [self.vacated]
        return placed(slots["gpu"][stay].tolist(), own.tolist(), self.gpus, vacated[-1])

    def booting_gpus(self) -> list[int]:
        """The GPUs of workers that boot, and have not said what they take there."""
        slots = self.board.slots
        found: list[int] = slots["gpu"][np.isin(self.board.states(), list(BOOTING)) & (slots["gpu_bytes"] == 0)].tolist()
        return found

    def free(self, index: int) -> None:
        """Take back the slot of a worker that has ended; its counters stay."""
        slot, state = self.board.slots[index], self.board.state(index)
        served = state not in BOOTING and state is not State.FAILED
        stays = not slot["leave"] and not slot["spent"]
        if slot["role"] == Role.ACTIVE and stays and (served or slot["missed"]):
            self.missed += 1
        self.vacated = int(slot["gpu"])
        for field in ("pid", "connections", "waiting"):
            slot[field] = 0
        self.board.move(index, Event.REAP)
        self.barrier.drop(index)

    def fill(self) -> bool:
        """Somebody comes in a place where traffic is to be taken; whether one was missed there."""
        missed = self.missed > 0
        self.missed -= missed
        return missed

    def wake(self, generation: int) -> None:
        """Have a generation's workers look at the page again."""
        for index in self.of(generation):
            self.barrier.wake(index)

    def of(self, generation: int) -> Iterator[int]:
        """The slots that a generation's workers hold."""
        for index in range(len(self.board.slots)):
            if self.board.state(index) is not State.EMPTY and self.board.slots[index]["generation"] == generation:
                yield index

    def staying(self, generation: int, role: Role | None = None) -> list[int]:
        """Those of them that are not told to leave, nor to be once another is there; of one role or any."""
        slots = self.board.slots
        stay = [index for index in self.of(generation) if not slots[index]["leave"] and not slots[index]["spent"]]
        return [index for index in stay if role is None or slots[index]["role"] == role]

    def standing(self, generation: int, state: State) -> list[int]:
        """Those of them that stay and are in `state`."""
        return [index for index in self.staying(generation) if self.board.state(index) is state]

    def overdue(self) -> list[int]:
        """Slots of workers that have outlived the end that they should have made of themselves."""
        limit = now_ms() - OWN_END_SECONDS * 1000
        words = [unpack(int(word)) for word in self.board.slots["word"]]
        return [index for index, (state, deadline) in enumerate(words) if state in BOOTING and deadline < limit]
