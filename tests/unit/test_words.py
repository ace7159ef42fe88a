"""What the master says in words: indices that never change, shapes that are remembered, reasons."""

from __future__ import annotations

import pytest

from server import notice
from server.exits import ConfigurationError
from server.master.words import Words
from server.scoreboard import MAX_MODELS, Scoreboard


@pytest.fixture
def words() -> Words:
    """The words of a page with three slots."""
    return Words(Scoreboard.create(3))


def test_index(words: Words) -> None:
    """A model keeps its index, whoever asks and in whatever order; when all are taken the next is refused by name."""
    keys = [f"m{number}/1" for number in range(MAX_MODELS)]

    assert list(range(MAX_MODELS)) == [words.index(key) for key in keys]
    assert list(range(MAX_MODELS)) == [Words(words.board).index(key) for key in keys]
    with pytest.raises(ConfigurationError, match=rf"^model new/1: .* {MAX_MODELS} models"):
        words.index("new/1")
    assert words.board.model_index("m3/1") == words.index("m3/1")


def test_longest_key(words: Words) -> None:
    """The longest name and version that there are fit whole, so that two of them are two."""
    first, second = (f"{'m' * 64}/{version}" for version in (999_999_998, 999_999_999))

    assert (0, 1, 0) == (words.index(first), words.index(second), words.index(first))


def test_remembered(words: Words) -> None:
    """Cold shapes of all slots come together by model, each once; a model that met none is not there."""
    index, _ = words.index("a/1"), words.index("b/1")
    cold = words.board.slots["models"]["cold_shapes"]
    cold[0, index, 0, :2] = (2, 7)
    cold[2, index, 0, :2] = (2, 7)
    cold[2, index, 5, :2] = (1, 9)
    cold[1, MAX_MODELS - 1, 0, 0] = 3  # of no model

    assert {"a/1": ((1, 9), (2, 7))} == words.remembered()


def test_reasons(words: Words) -> None:
    """Why a reload was refused stays while what is missing comes and goes."""
    words.reasons[:] = ["refused"]
    words.complain("workers are missing")
    assert ["refused", "workers are missing"] == notice.read(words.board).reasons

    words.complain("")
    words.say("loading")

    said = notice.read(words.board)
    assert (["refused"], "loading") == (said.reasons, said.doing)
