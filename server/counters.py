"""What a worker counts, in its slot of the scoreboard. One writer: the threads of this worker, in turn."""

from __future__ import annotations

import bisect
import threading
import time

import numpy as np

from server.models.model import Model
from server.models.shapes import Shape
from server.scoreboard import BUCKETS, MAX_AXES, MAX_BATCH_SIZES, MAX_MODELS, MODEL, Scoreboard, word

_REQUESTS, _ERRORS, _DURATIONS, _SUM = map(word, ("requests", "errors", "durations", "duration_sum"))
_MODELS = [word("models", index) for index in range(MAX_MODELS)]
_FIELD = {name: word("models", 0, name) - _MODELS[0] for name in MODEL.names or ()}
_SIZE = word("models", 0, "sizes", 1) - word("models", 0, "sizes")


class Counters:
    """Adds to one slot. All times are nanoseconds."""

    def __init__(self, board: Scoreboard, slot: int) -> None:
        """Count in `slot` of `board`."""
        self.slot = board.slots[slot]
        self.words, self.floats = board.words(slot)
        self.lock = threading.Lock()
        self.on = True
        """Off while requests of our own make the worker warm."""

    def ran(self, model: Model, shape: Shape, rows: int, queue_ns: int, infer_ns: int, *, cold: bool) -> None:
        """One batch ran in `shape`, with `rows` rows of requests that had waited `queue_ns` in sum."""
        if not self.on:
            return
        size = model.plan.rows(shape)
        with self.lock:
            self._add(model, batches=1, rows=rows, queue_ns=queue_ns, infer_ns=infer_ns, cold=int(cold))
            first = _MODELS[model.index] + _FIELD["sizes"]
            for place in range(first, first + _SIZE * MAX_BATCH_SIZES, _SIZE):
                if self.words[place] in (0, size):
                    self.words[place] = size
                    self.words[place + 1] += 1
                    self.words[place + 2] += infer_ns
                    break

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
        with self.lock:
            took = self._request(received_ns)
            self._add(model, success=1, success_ns=took, input_ns=input_ns, output_ns=output_ns)
            self.words[_MODELS[model.index] + _FIELD["last_ms"]] = time.time_ns() // 1_000_000

    def refused(self, model: Model | None, received_ns: int) -> None:
        """One request got an error."""
        if not self.on:
            return
        with self.lock:
            took = self._request(received_ns)
            self.words[_ERRORS] += 1
            if model is not None:
                self._add(model, fail=1, fail_ns=took)

    def _request(self, received_ns: int) -> int:
        took = time.monotonic_ns() - received_ns
        self.words[_REQUESTS] += 1
        self.words[_DURATIONS + bisect.bisect_left(BUCKETS, took / 1e9)] += 1
        self.floats[_SUM] += took / 1e9
        return took

    def _add(self, model: Model, **fields: int) -> None:
        first = _MODELS[model.index]
        for name, count in fields.items():
            self.words[first + _FIELD[name]] += count
