"""What the master says in words: indices that stay while their model does, shapes that are remembered, reasons."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from server import notice
from server.exits import ConfigurationError
from server.master.words import Words
from server.models.generation import Generation
from server.scoreboard import MAX_MODELS, MODEL_PLACES, Scoreboard


@pytest.fixture
def words() -> Words:
    """The words of a page with three slots."""
    return Words(Scoreboard.create(3))


def test_index(words: Words) -> None:
    """A model keeps its index, whoever asks and in whatever order, as long as there is one that nobody has had."""
    keys = [f"m{number}/1" for number in range(MODEL_PLACES)]

    assert list(range(MODEL_PLACES)) == [words.index(key) for key in keys]
    assert list(range(MODEL_PLACES)) == [Words(words.board).index(key) for key in keys]
    assert words.board.model_index("m3/1") == words.index("m3/1")


def serving(words: Words, *keys: str) -> None:
    """Have a generation of some models stand."""
    held = [SimpleNamespace(files=SimpleNamespace(key=key)) for key in keys]
    words.generations[1] = cast("Generation", SimpleNamespace(holdings=held))


def test_places_are_given_anew(words: Words) -> None:
    """Once all places are taken, that of the model gone for longest goes to the next, emptied in every slot."""
    for number in range(MODEL_PLACES):
        words.index(f"m{number}/1")
    words.begin()
    words.index("m0/1")  # built again, so not the one that is gone for longest
    words.board.slots["models"]["success"] = 5

    assert [1, 2] == [words.index("new/1"), words.index("new/2")]

    assert [5, 0, 0, 5] == words.board.slots["models"]["success"][2][:4].tolist()
    assert (words.board.slots["models"]["success"].sum(axis=1) == 5 * (MODEL_PLACES - 2)).all()
    assert [None, None, 0, 1] == [words.board.model_index(key) for key in ("m1/1", "m2/1", "m0/1", "new/1")]
    words.begin()
    assert 3 == words.index("m1/1")  # it comes back to another place


def test_nothing_in_common(words: Words) -> None:
    """As many models as there may be can all be replaced at once, time and again: what serves keeps its places meanwhile."""
    served: list[int] = []
    for generation in range(4):
        words.begin()
        keys = [f"m{number}/{generation}" for number in range(MAX_MODELS)]
        places = [words.index(key) for key in keys]
        assert len({*served, *places}) == len(served) + len(places)
        serving(words, *keys)
        served = places


def test_held_places_stay(words: Words) -> None:
    """No place is taken from a model that is served; where all are, the next is refused by name."""
    keys = [f"m{number}/1" for number in range(MODEL_PLACES)]
    for key in keys:
        words.index(key)
    serving(words, *keys)
    words.begin()
    before = words.board.header["names"][0].tolist()

    with pytest.raises(ConfigurationError, match=rf"^model new/1: .* {MODEL_PLACES} models"):
        words.index("new/1")

    assert before == words.board.header["names"][0].tolist()
    serving(words, *keys[:5], *keys[6:])
    words.begin()
    assert 5 == words.index("new/2")


def test_a_build_keeps_its_places(words: Words) -> None:
    """No place is taken from a model of the same build, though nothing of it is served yet."""
    words.begin()
    for number in range(MODEL_PLACES):
        words.index(f"m{number}/1")

    with pytest.raises(ConfigurationError):
        words.index("new/1")


def test_a_place_is_found_behind_those_held(words: Words) -> None:
    """A new version after many that were refused gets a place of one of these, whatever is served meanwhile."""
    half = MODEL_PLACES // 2
    old = [words.index(f"m{number}/1") for number in range(half)]
    serving(words, *(f"m{number}/1" for number in range(half)))

    for version in range(2, 3 * MODEL_PLACES):  # each replaces the last model, and none gets as far as to be served
        words.begin()
        places = [words.index(f"m{number}/1") for number in range(half - 1)]
        assert places == old[:-1]
        assert words.index(f"m{half - 1}/{version}") not in old


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
    cold[1, MODEL_PLACES - 1, 0, 0] = 3  # of no model

    assert {"a/1": ((1, 9), (2, 7))} == words.remembered()


def test_reasons(words: Words) -> None:
    """Why a reload was refused stays while what is missing comes and goes."""
    words.reload_refused = "refused"
    words.complain("workers are missing")
    assert ["refused", "workers are missing"] == notice.read(words.board).reasons

    words.complain("")
    words.say("loading")

    said = notice.read(words.board)
    assert (["refused"], "loading") == (said.reasons, said.doing)
