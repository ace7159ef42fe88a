"""The notice: a reader gets a whole text whatever the writer is doing, or has died doing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.notice import ModelNotice, Notice, publish, read
from server.scoreboard import TEXT, Scoreboard

READS = 300
PUBLISH = """
import itertools, sys
from server.notice import Notice, publish
from server.scoreboard import Scoreboard
board = Scoreboard(int(sys.argv[1]))
publish(board, Notice(doing="a", reasons=["a"]))
print("on", flush=True)
for letter in itertools.cycle("abcdefghijklmnopqrstuvwxyz"):
    text = letter * (1 + (ord(letter) * 7919) % 400000)
    publish(board, Notice(doing=text, reasons=[text]))
"""


@contextmanager
def publisher(board: Scoreboard) -> Iterator[subprocess.Popen[str]]:
    """Another process that publishes texts of one letter as fast as it can, until it is killed."""
    command = [sys.executable, "-c", PUBLISH, str(board.fd)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, pass_fds=[board.fd], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert "on\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def letter_of(notice: Notice) -> str:
    """The one letter that the whole notice is made of."""
    letters = set(notice.doing)
    assert 1 == len(letters)
    assert [notice.doing] == notice.reasons
    return letters.pop()


def test_round_trip() -> None:
    """What was said last is read, whether it is longer or shorter than what was said before."""
    board = Scoreboard.create(1)
    model = ModelNotice("net", 3, 1, "onnxruntime_onnx", "live", "", batched=True, shapes=[{"batch": 4}, {}], private_bytes=7)
    long = Notice({7: [model], 8: []}, "model net/3: loading \N{SNOWMAN}", ["one", "two"])

    assert Notice() == read(board)
    for notice in (long, Notice(doing="x"), long, Notice()):
        publish(board, notice)
        assert notice == read(board)


def test_too_long() -> None:
    """A text past the room there is is refused, with the bound, and the one before stays; the longest one fits."""
    board = Scoreboard.create(1)
    publish(board, Notice(doing="before"))
    empty = len('{"generations":{},"doing":"","reasons":[]}')

    with pytest.raises(ValueError, match=f"takes {TEXT + 1} bytes, room is for {TEXT}"):
        publish(board, Notice(doing="x" * (TEXT - empty + 1)))

    assert "before" == read(board).doing
    longest = Notice(doing="y" * (TEXT - empty))
    publish(board, longest)
    publish(board, Notice(doing="after"))
    publish(board, longest)
    assert longest == read(board)


def test_never_half_a_text() -> None:
    """A reader beside a busy writer sees texts of one letter only, and sees them change."""
    board = Scoreboard.create(1)

    with publisher(board):
        letters = [letter_of(read(board)) for _ in range(READS)]
        while len(set(letters)) < 2:
            letters.append(letter_of(read(board)))


def test_writer_dies_anywhere() -> None:
    """A writer that is killed in the middle leaves a whole text, and the next one is read."""
    board = Scoreboard.create(1)
    for turn in range(3):
        with publisher(board) as process:
            process.kill()
            process.wait()
            letter_of(read(board))
        publish(board, Notice(doing=f"turn {turn}"))
        assert Notice(doing=f"turn {turn}") == read(board)
