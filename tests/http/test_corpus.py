"""The corpus of good and bad HTTP: one outcome however the bytes come apart, and the same from gunicorn's own workers."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from pathlib import Path

import pytest

from tests import corpus
from tests.corpus import Case, Expected, Outcome
from tests.kinds import KINDS, serve
from tests.wire import Answer, Kernel, Wire

APART = ("line by line", "byte by byte")
"""The ways in which the head of a request is always read before its body."""
SEED = int(os.environ.get("CORPUS_SEED") or random.SystemRandom().getrandbits(32))
"""Of the random pieces. A failure names it; the environment may set it."""

GOOD = corpus.read(corpus.ROOT / "good" / "length.http")
"""The request that is sent after each case, on its connection and on a fresh one."""


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, echo: Path) -> Iterator[tuple[str, int]]:
    """A kind of worker, and the port of a server that has one."""
    with serve(request.param, echo) as server:
        yield request.param, server.port


@pytest.mark.parametrize("case", corpus.load(), ids=lambda case: case.name)
def test_outcome(served: tuple[str, int], kernel: Kernel, case: Case) -> None:
    """Sent whole, line by line, byte by byte and in random pieces, a case has the one outcome; afterwards the server serves."""
    kind, port = served
    for way, pieces in ways(case).items():
        try:
            check(kind, port, kernel, case, way, pieces)
        except AssertionError as error:
            error.add_note(f"sent {way} to {kind} (CORPUS_SEED={SEED})")
            raise


def check(kind: str, port: int, kernel: Kernel, case: Case, way: str, pieces: list[bytes]) -> None:
    """Show that a case sent in `pieces` has its outcome, and leaves the server serving."""
    expected = case.outcome(kind)
    answers, closes = play(port, kernel, case, pieces, expected)
    # Ours asks for a body if nothing of it is there yet, and sends a client that half-closes a 100 to see whether it lives.
    apart = kind != "warmfork" or (way in APART and not case.half_close)
    assert [answer for answer in expected.answers if apart or not answer.interim] == seen(answers, expected, interim=apart)
    assert expected.closes == closes
    if kind == "warmfork":
        assert all(is_error(answer) for answer in answers if answer.status >= 400)
        if answers and not case.half_close:  # nobody needs to be told of an end that is the client's own
            assert closes == answers[-1].says_close
    assert GOOD.answers == seen(play(port, kernel, GOOD, [GOOD.sent], GOOD)[0], GOOD)


def ways(case: Case) -> dict[str, list[bytes]]:
    """The pieces that a case is sent in, each read by the server before the next is sent."""
    chance = random.Random(f"{SEED} {case.name}")  # noqa: S311 - nothing depends on its being hard to guess
    longest = chance.choice([3, 30, 300, 3000])
    cuts = [0]
    while cuts[-1] < len(case.sent):
        cuts.append(cuts[-1] + chance.randint(1, longest))
    return {
        "whole": [case.sent],
        "line by line": re.findall(rb"[^\n]*\n|[^\n]+", case.sent),
        "byte by byte": [bytes([byte]) for byte in case.sent],
        "in random pieces": [case.sent[start:end] for start, end in pairwise(cuts)],
    }


def play(port: int, kernel: Kernel, case: Case, pieces: list[bytes], expected: Outcome) -> tuple[list[Answer], bool]:
    """Send a case in `pieces`; give what came, and whether the server then closed: one that did not answers `GOOD` too."""
    with Wire(port, kernel) as wire:
        wire.send_all(pieces, half_close=case.half_close)
        answers: list[Answer] = []
        for awaited in expected.answers:
            if not awaited.interim:
                answers += wire.answers(bodiless=awaited.bodiless)
                if not answers or answers[-1].interim:
                    return answers, True
        if expected.closes:
            return answers + wire.rest(), True
        wire.send(GOOD.sent)
        following = wire.answers()
        assert seen(following, GOOD) in (GOOD.answers, []), f"what followed on the connection of {case.name}"
        return answers, not following


def seen(answers: list[Answer], expected: Outcome, *, interim: bool = True) -> list[Expected]:
    """What came, as far as `expected` says anything of it, with or without interim answers."""
    awaited = chain((answer for answer in expected.answers if not answer.interim), repeat(Expected(0)))
    found = []
    for answer in answers:
        if not answer.interim:
            wanted = next(awaited)
            values = answer.values() if answer.status == 200 and wanted.values is not None else None
            found.append(Expected(answer.status, values, wanted.bodiless))
        elif interim:
            found.append(Expected(answer.status))
    return found


def is_error(answer: Answer) -> bool:
    """Whether an answer is the protocol's error, or answers a HEAD."""
    return not answer.body or list(json.loads(answer.body)) == ["error"]
