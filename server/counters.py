"""What a worker counts, in its slot of the scoreboard. One writer: the threads of this worker, in turn."""

from __future__ import annotations

import bisect
import threading
import time

import numpy as np

from server.models.model import Model
from server.models.shapes import Shape
from server.scoreboard import BUCKETS, MAX_AXES, MAX_BATCH_SIZES, MODEL_PLACES, Scoreboard, word

_REQUESTS, _ERRORS, _DURATIONS, _SUM = map(word, ("requests", "errors", "durations", "duration_sum"))
_MODELS = [word("models", index) for index in range(MODEL_PLACES)]
_SUCCESS, _SUCCESS_NS, _FAIL, _FAIL_NS, _ROWS, _BATCHES, _QUEUE_NS, _INPUT_NS, _INFER_NS, _OUTPUT_NS, _LAST_MS, _COLD, _SIZES = (
    word("models", 0, name) - _MODELS[0]
    for name in (
        *("success", "success_ns", "fail", "fail_ns", "rows", "batches"),
        *("queue_ns", "input_ns", "infer_ns", "output_ns", "last_ms", "cold", "sizes"),
    )
)
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
            words, model_at = self.words, _MODELS[model.index]
            words[model_at + _BATCHES] += 1
            words[model_at + _ROWS] += rows
            words[model_at + _QUEUE_NS] += queue_ns
            words[model_at + _INFER_NS] += infer_ns
            words[model_at + _COLD] += cold
            first = model_at + _SIZES
            for place in range(first, first + _SIZE * MAX_BATCH_SIZES, _SIZE):
                if words[place] in (0, size):
                    words[place] = size
                    words[place + 1] += 1
                    words[place + 2] += infer_ns
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
            words, model_at = self.words, _MODELS[model.index]
            words[model_at + _SUCCESS] += 1
            words[model_at + _SUCCESS_NS] += took
            words[model_at + _INPUT_NS] += input_ns
            words[model_at + _OUTPUT_NS] += output_ns
            words[model_at + _LAST_MS] = time.time_ns() // 1_000_000

    def refused(self, model: Model | None, received_ns: int) -> None:
        """One request got an error."""
        if not self.on:
            return
        with self.lock:
            took = self._request(received_ns)
            self.words[_ERRORS] += 1
            if model is not None:
                self.words[_MODELS[model.index] + _FAIL] += 1
                self.words[_MODELS[model.index] + _FAIL_NS] += took

    def _request(self, received_ns: int) -> int:
        took = time.monotonic_ns() - received_ns
        self.words[_REQUESTS] += 1
        self.words[_DURATIONS + bisect.bisect_left(BUCKETS, took / 1e9)] += 1
        self.floats[_SUM] += took / 1e9
        return took
