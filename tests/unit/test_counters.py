"""What a worker counts: each thing once, in its own place, and nothing of its own requests."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.counters import Counters
from server.scoreboard import BUCKETS, COLD_SHAPES, Scoreboard
from tests.unit.fakes import model, rows

INDEX = 5
MODEL = model(index=INDEX)


@pytest.fixture
def counters() -> Counters:
    """Counters of the second of three slots."""
    return Counters(Scoreboard.create(3), 1)


def row(counters: Counters) -> Any:
    """What is counted for the model."""
    return counters.slot["models"][INDEX]


def test_ran(counters: Counters) -> None:
    """A batch counts once, its rows each but no padding, its time in the model's place and in that of the size that ran."""
    for size, came, infer in ((4, 3, 100), (1, 1, 10), (4, 4, 200)):
        counters.ran(MODEL, (size,), came, 7, infer, cold=False)

    assert (3, 8, 21, 310, 0) == tuple(row(counters)[name] for name in ("batches", "rows", "queue_ns", "infer_ns", "cold"))
    assert [(4, 2, 300), (1, 1, 10), (0, 0, 0)] == row(counters)["sizes"][:3].tolist()


def test_unbatched_rows(counters: Counters) -> None:
    """A model without a batch runs one row at a time, whatever its free axes are called and however long they are."""
    free = model(index=INDEX, inputs=(rows("x"),), batch_sizes=None)

    counters.ran(free, (7,), 1, 0, 1, cold=True)

    assert (1, 1) == (row(counters)["batches"], row(counters)["rows"])


def test_cold(counters: Counters) -> None:
    """What ran cold is counted, and nothing of it kept: whether it went well is not known yet."""
    for cold in (True, False, True):
        counters.ran(MODEL, (2,), 2, 0, 1, cold=cold)

    assert 2 == row(counters)["cold"]
    assert not row(counters)["cold_shapes"].any()


def test_remember(counters: Counters) -> None:
    """The newest shapes are kept whole, and nothing else is counted."""
    for length in range(1, COLD_SHAPES + 3):
        counters.remember(MODEL, (length,))

    assert (0, 0) == (row(counters)["cold"], row(counters)["batches"])
    assert set(range(3, COLD_SHAPES + 3)) == set(row(counters)["cold_shapes"][:, 0].tolist())
    assert not row(counters)["cold_shapes"][:, 1:].any()


def test_one_cold_shape_does_not_drive_out_the_others(counters: Counters) -> None:
    """A shape that comes cold again and again takes one place."""
    for length in (2, 3, *[5] * (2 * COLD_SHAPES)):
        counters.remember(MODEL, (length,))

    assert [2, 3, 5] == row(counters)["cold_shapes"][-3:, 0].tolist()


@pytest.mark.parametrize("seconds", [0, 0.002, 0.2, 29, 3600])
def test_answered(counters: Counters, seconds: float) -> None:
    """A result counts as a request and a success, and stands in the bucket of its time."""
    counters.answered(MODEL, time.monotonic_ns() - int(seconds * 1e9), 11, 22)

    slot = counters.slot
    assert (1, 0, 1, 0) == (slot["requests"], slot["errors"], row(counters)["success"], row(counters)["fail"])
    assert (11, 22) == (row(counters)["input_ns"], row(counters)["output_ns"])
    assert seconds <= slot["duration_sum"] == row(counters)["success_ns"] / 1e9
    (bucket,) = slot["durations"].nonzero()[0]
    bounds = (0, *BUCKETS, float("inf"))
    assert bounds[bucket] <= slot["duration_sum"] <= bounds[bucket + 1]
    assert abs(time.time() * 1000 - row(counters)["last_ms"]) < 60_000


@pytest.mark.parametrize("known", [True, False])
def test_refused(counters: Counters, known: bool) -> None:  # noqa: FBT001
    """An error counts as a request and an error, and against the model only where there is one."""
    counters.refused(MODEL if known else None, time.monotonic_ns() - 5_000_000)

    slot = counters.slot
    assert (1, 1, 0, int(known)) == (slot["requests"], slot["errors"], row(counters)["success"], row(counters)["fail"])
    assert 1 == slot["durations"].sum()
    assert (row(counters)["fail_ns"] >= 5_000_000) == known


def test_off() -> None:
    """Nothing of our own requests is counted."""
    board = Scoreboard.create(1)
    before = board.slots.tobytes()
    counters = Counters(board, 0)
    counters.on = False

    counters.ran(MODEL, (4,), 4, 1, 1, cold=True)
    counters.remember(MODEL, (4,))
    counters.answered(MODEL, time.monotonic_ns(), 1, 1)
    counters.refused(MODEL, time.monotonic_ns())

    assert before == board.slots.tobytes()


def test_threads_lose_nothing(counters: Counters) -> None:
    """Several threads that count at once lose nothing of each other's, and nothing lands in another slot or model."""

    def count(_: int) -> None:
        counters.ran(MODEL, (2,), 2, 1, 1, cold=True)
        counters.remember(MODEL, (2,))
        counters.answered(MODEL, time.monotonic_ns(), 1, 1)
        counters.refused(MODEL, time.monotonic_ns())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(2000)))

    slot = counters.slot
    assert (4000, 2000, 4000) == (slot["requests"], slot["errors"], slot["durations"].sum())
    assert (2000, 4000, 2000, 2000, 2000) == tuple(row(counters)[name] for name in ("batches", "rows", "cold", "success", "fail"))
    assert 2000 == slot["models"]["batches"].sum()
    assert 2 == row(counters)["cold_shapes"].sum()
