"""Who lets connections go, and how many."""

from __future__ import annotations

import random

import pytest

from server.scoreboard import Scoreboard, now_ms, pack
from server.states import State
from server.worker.share import STILL_SECONDS, surplus

FAR = 1 << 40
TIMEOUT = 30.0


def page(counts: list[int]) -> Scoreboard:
    """So many connections at each worker that takes traffic, and a slot that nobody has."""
    board = Scoreboard.create(len(counts) + 1)
    for slot, count in enumerate(counts):
        board.slots["word"][slot] = pack(State.ACTIVE, FAR)
        board.slots["connections"][slot] = count
    return board


def stand_still(board: Scoreboard, slot: int) -> None:
    """The loop of a worker has not turned for a while."""
    board.renew(slot, now_ms() + int((TIMEOUT - STILL_SECONDS) * 1000) - 1)


@pytest.mark.parametrize(
    ("counts", "surpluses"),
    [
        ([32], [0]),
        ([32, 0], [16, 0]),
        ([21, 11], [5, 0]),
        ([20, 12], [4, 0]),
        ([19, 13], [0, 0]),
        ([18, 14], [0, 0]),
        ([12, 11, 9], [0, 0, 0]),
        ([2, 0], [1, 0]),
        ([3, 0], [1, 0]),
        ([1, 1, 0], [0, 0, 0]),
        ([2, 1, 0], [1, 0, 0]),
        ([7, 7, 6, 6, 6, 0], [2, 2, 0, 0, 1, 0]),
        ([10, 5, 5, 5, 5, 5, 5, 5, 5, 5], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ([5, 5, 5, 5, 5, 3], [0, 0, 0, 0, 0, 0]),
        ([6, 6, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_surplus(counts: list[int], surpluses: list[int]) -> None:
    """Who has most lets go, where one has far more than its share or another far less, and as many as are lacking."""
    board = page(counts)

    assert surpluses == [surplus(board, slot, count, TIMEOUT) for slot, count in enumerate(counts)]


@pytest.mark.parametrize("counts", [[32, 0, 0, 0, 0, 0], [7, 7, 6, 6, 6, 0], [2, 0], [300] * 15 + [0], [5, 5, 5, 1]])
@pytest.mark.parametrize("seed", range(5))
def test_comes_to_rest(counts: list[int], seed: int) -> None:
    """Whoever accepts what was let go, soon nobody lets go, nobody has none, and few connections have been closed for it."""
    chance, now, closed = random.Random(seed), list(counts), 0  # noqa: S311 - no secret
    board = page(now)
    for _ in range(100):
        going = [surplus(board, slot, count, TIMEOUT) for slot, count in enumerate(now)]
        closed += sum(going)
        now = [count - gone for count, gone in zip(now, going, strict=True)]
        for _ in range(sum(going)):
            now[chance.randrange(len(now))] += 1
        board.slots["connections"][: len(now)] = now

    assert not any(surplus(board, slot, count, TIMEOUT) for slot, count in enumerate(now))
    assert sum(counts) == sum(now)
    assert min(now) > 0
    assert closed <= 3 * sum(counts)


@pytest.mark.parametrize("state", [State.STANDBY, State.DRAINING, State.EMPTY])
def test_who_takes_no_traffic(state: State) -> None:
    """Whoever takes no traffic neither lets connections go nor has a share."""
    board = page([32, 0])
    board.slots["word"][1] = pack(state, FAR)

    assert [0, 0] == [surplus(board, 0, 32, TIMEOUT), surplus(board, 1, 40, TIMEOUT)]


@pytest.mark.parametrize(("counts", "surpluses"), [([12, 12, 0], [0, 0]), ([24, 0, 0], [8, 0]), ([40, 8, 12], [12, 0])])
def test_one_that_stands_still(counts: list[int], surpluses: list[int]) -> None:
    """Nothing is let go for one whose loop does not turn, and nobody's share is another for it."""
    board = page(counts)
    stand_still(board, 2)

    assert surpluses == [surplus(board, slot, counts[slot], TIMEOUT) for slot in (0, 1)]


@pytest.mark.parametrize("counts", [[24, 24, 0], [15, 15, 15, 15, 10, 10, 10, 10], [32, 0, 0, 0]])
@pytest.mark.parametrize("seed", range(5))
def test_long_batches(counts: list[int], seed: int) -> None:
    """Where most workers are in the middle of a batch whenever one looks, it comes to rest as well, for as few connections."""
    chance, now, closed = random.Random(seed), list(counts), 0  # noqa: S311 - no secret
    for _ in range(200):
        board = page(now)
        looks = chance.randrange(len(now))
        others = [slot for slot in range(len(now)) if slot != looks]
        for slot in chance.sample(others, len(others) * 2 // 3):
            stand_still(board, slot)
        going = surplus(board, looks, now[looks], TIMEOUT)
        closed += going
        now[looks] -= going
        for _ in range(going):  # those who stand still accept as well, once their batch is over
            now[chance.randrange(len(now))] += 1

    board = page(now)
    assert not any(surplus(board, slot, count, TIMEOUT) for slot, count in enumerate(now))
    assert closed <= 3 * sum(counts)


def test_says_what_it_has() -> None:
    """The page learns how many there are."""
    board = page([1, 1])

    surplus(board, 1, 5, TIMEOUT)

    assert 5 == board.slots["connections"][1]
