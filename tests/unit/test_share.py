"""Who lets connections go, and how many."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from server.scoreboard import Scoreboard, pack
from server.states import State
from server.worker.share import Share

FAR = 1 << 40


def page(counts: list[int]) -> Scoreboard:
    """So many connections at each worker that takes traffic, and a slot that nobody has."""
    board = Scoreboard.create(len(counts) + 1)
    for slot, count in enumerate(counts):
        board.slots["word"][slot] = pack(State.ACTIVE, FAR)
        board.slots["connections"][slot] = count
    return board


def beat(board: Scoreboard, slots: Iterable[int], turn: int) -> None:
    """The loops of these workers turn."""
    for slot in slots:
        board.renew(slot, FAR + turn)


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

    assert surpluses == [Share(board, slot).surplus(count) for slot, count in enumerate(counts)]


@pytest.mark.parametrize("counts", [[32, 0, 0, 0, 0, 0], [7, 7, 6, 6, 6, 0], [2, 0], [300] * 15 + [0], [5, 5, 5, 1]])
@pytest.mark.parametrize("seed", range(5))
def test_comes_to_rest(counts: list[int], seed: int) -> None:
    """Whoever accepts what was let go, soon nobody lets go, nobody has none, and few connections have been closed for it."""
    chance, now, closed = random.Random(seed), list(counts), 0  # noqa: S311 - no secret
    board = page(now)
    shares = [Share(board, slot) for slot in range(len(now))]
    for turn in range(100):
        beat(board, range(len(now)), turn)
        going = [share.surplus(count) for share, count in zip(shares, now, strict=True)]
        closed += sum(going)
        now = [count - gone for count, gone in zip(now, going, strict=True)]
        for _ in range(sum(going)):
            now[chance.randrange(len(now))] += 1
        board.slots["connections"][: len(now)] = now

    assert not any(going)
    assert sum(counts) == sum(now)
    assert min(now) > 0
    assert closed <= 3 * sum(counts)


def test_one_that_takes_none() -> None:
    """What one lacks whose loop does not turn is let go once and comes back; again when it turns, and then it has it."""
    board = page([12, 12, 0])
    first, second = Share(board, 0), Share(board, 1)

    for turn in range(1, 4):
        beat(board, [0, 1], turn)
        assert (0 if turn > 1 else 4, 0 if turn > 1 else 4) == (first.surplus(12), second.surplus(12))

    beat(board, [0, 1, 2], 4)
    assert (4, 4) == (first.surplus(12), second.surplus(12))


@pytest.mark.parametrize("state", [State.STANDBY, State.DRAINING, State.EMPTY])
def test_who_takes_no_traffic(state: State) -> None:
    """Whoever takes no traffic neither lets connections go nor has a share."""
    board = page([32, 0])
    board.slots["word"][1] = pack(state, FAR)

    assert [0, 0] == [Share(board, 0).surplus(32), Share(board, 1).surplus(40)]


def test_says_what_it_has() -> None:
    """The page learns how many there are."""
    board = page([1, 1])

    Share(board, 1).surplus(5)

    assert 5 == board.slots["connections"][1]
