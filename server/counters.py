"""What a worker counts, in its slot of the scoreboard. One writer: the threads of this worker, in turn."""

from __future__ import annotations

import bisect
import threading
import time

import numpy as np

from server.models.model import Model, Prepared
from server.models.shapes import Shape
from server.scoreboard import BUCKETS, MAX_AXES, Scoreboard


class Counters:
    """Adds to one slot. All times are nanoseconds."""

    def __init__(self, board: Scoreboard, slot: int) -> None:
        """Count in `slot` of `board`."""
        self.slot = board.slots[slot]
        self.lock = threading.Lock()
        self.on = True
        """Off while requests of our own make the worker warm."""

    def ran(self, model: Model, prepared: Prepared, queue_ns: int, infer_ns: int, *, cold: bool) -> None:
        """One batch ran."""
        if not self.on:
            return
        row = self.slot["models"][model.index]
        size = model.plan.rows(prepared.shape)
        with self.lock:
            row["batches"] += 1
            row["rows"] += model.plan.rows(prepared.came)
            row["queue_ns"] += queue_ns
            row["infer_ns"] += infer_ns
            sizes = row["sizes"]
            for entry in sizes:
                if entry["size"] in (0, size):
                    entry["size"] = size
                    entry["count"] += 1
                    entry["ns"] += infer_ns
                    break
            row["cold"] += cold

    def remember(self, model: Model, shape: Shape) -> None:
        """Keep a shape that was cold, and went well, for the next generation to warm; the newest `COLD_SHAPES` of them."""
        if not self.on:
            return
        padded = np.zeros(MAX_AXES, np.int32)
        padded[: len(shape)] = shape
        ring = self.slot["models"][model.index]["cold_shapes"]
        with self.lock:
            if not (ring == padded).all(axis=1).any():
                ring[:-1] = ring[1:].copy()
                ring[-1] = padded

    def answered(self, model: Model, received_ns: int, input_ns: int, output_ns: int) -> None:
        """One request got its result."""
        if not self.on:
            return
        row = self.slot["models"][model.index]
        with self.lock:
            took = self._request(received_ns)
            row["success"] += 1
            row["success_ns"] += took
            row["input_ns"] += input_ns
            row["output_ns"] += output_ns
            row["last_ms"] = time.time_ns() // 1_000_000

    def refused(self, model: Model | None, received_ns: int) -> None:
        """One request got an error."""
        if not self.on:
            return
        with self.lock:
            took = self._request(received_ns)
            self.slot["errors"] += 1
            if model is not None:
                row = self.slot["models"][model.index]
                row["fail"] += 1
                row["fail_ns"] += took

    def _request(self, received_ns: int) -> int:
        took = time.monotonic_ns() - received_ns
        self.slot["requests"] += 1
        self.slot["durations"][bisect.bisect_left(BUCKETS, took / 1e9)] += 1
        self.slot["duration_sum"] += took / 1e9
        return took
