"""The shared page: its layout, and that a word is whole whoever writes, reads or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scoreboard import HEADER, MODEL, NEVER, SLOT, TEXT, Scoreboard, now_ms, pack, unpack
from server.states import Event, IllegalMoveError, Phase, State

SLOTS = 3
READS = 5000
ONE, OTHER = pack(State.ACTIVE, 0xAAAAAAAAAAAAAA & NEVER), pack(State.FAILED, 0x55555555555555)
FLIP = f"""
import sys
from server.scoreboard import Scoreboard
board = Scoreboard(int(sys.argv[1]))
board.slots["word"][1] = {ONE}
print("on", flush=True)
while True:
    for word in ({ONE}, {OTHER}):
        board.slots["word"][1] = word
        board.slots["models"]["success_ns"][1][3] = word
        board.set("notice", word)
"""


@contextmanager
def writer(board: Scoreboard, program: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has attached to the page and writes; it is killed at the end, wherever it is."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(board.fd)]
    with subprocess.Popen(command, cwd=root, pass_fds=[board.fd], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert "on\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("dtype", [HEADER, SLOT, MODEL])
def test_layout(dtype: np.dtype[np.void]) -> None:
    """Every number stands on a multiple of its size, so that the processor stores it at once."""
    assert dtype.fields
    for name, (field, offset, *_) in dtype.fields.items():
        if not field.base.fields and field.base.kind in "uif":
            assert not offset % field.base.itemsize, name
        if field.base.fields:
            assert not offset % 8, name
    assert not dtype.itemsize % 8


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_create(slots: int) -> None:
    """A new page has the slots asked for, all empty, aligned in this mapping too, and room for both texts."""
    board = Scoreboard.create(slots)

    assert [State.EMPTY] * slots == [board.state(index) for index in range(slots)]
    assert board.slots["word"].flags.aligned
    assert board.slots["models"]["batches"].flags.aligned
    assert board.header["notice"].flags.aligned
    assert 2 * TEXT == len(board.text)
    assert os.getpid() == board.get("master")
    assert not os.get_inheritable(board.fd)


def test_regions_apart() -> None:
    """Header, slots and text do not overlap: what fills one leaves the others alone."""
    board = Scoreboard.create(SLOTS)
    header = board.header.tobytes()

    board.slots.view(np.uint8)[:] = 255

    assert header == board.header.tobytes()
    assert not any(board.text)
    board.text[:] = b"\1" * len(board.text)
    assert (board.slots.view(np.uint8) == 255).all()


@given(st.sampled_from(State), st.integers(0, 1 << 60))
def test_pack(state: State, deadline: int) -> None:
    """A state and its deadline come back out of one word; a deadline that is too far is never."""
    assert (state, min(deadline, NEVER)) == unpack(pack(state, deadline))
    assert 0 <= pack(state, deadline) < 1 << 64


def test_move() -> None:
    """A move sets state and deadline together, renewing keeps the state, and a move that is none changes nothing."""
    board = Scoreboard.create(SLOTS)

    assert State.FORKED is board.move(1, Event.FORK, 77)
    board.renew(1, 99)

    assert (State.FORKED, 99) == board.snapshot().state(1)
    with pytest.raises(IllegalMoveError):
        board.move(1, Event.OPEN)
    assert (State.FORKED, 99) == board.snapshot().state(1)
    assert [State.EMPTY, State.EMPTY] == [board.state(0), board.state(2)]


def test_enter() -> None:
    """A phase is dated from when it began, not from when it was last said."""
    board = Scoreboard.create(SLOTS)
    board.enter(Phase.SERVING)
    since = board.get("phase_since_ns")

    board.enter(Phase.SERVING)

    assert (Phase.SERVING, since) == (board.phase, board.get("phase_since_ns"))
    board.enter(Phase.DRAINING)
    assert since < board.get("phase_since_ns")


def test_snapshot_is_a_copy() -> None:
    """A snapshot stays as it was."""
    board = Scoreboard.create(SLOTS)
    before = now_ms()
    snapshot = board.snapshot()

    board.move(0, Event.FORK)
    board.set("generation", 5)

    assert (State.EMPTY, 0) == snapshot.state(0)
    assert 0 == snapshot.header["generation"]
    assert before <= snapshot.now_ms <= now_ms()


def test_glance() -> None:
    """A glance is a copy, too, and has what readiness asks for: words, pids, generations, what is done; no counters."""
    board = Scoreboard.create(SLOTS)
    board.move(1, Event.FORK, 77)
    board.slots["pid"][1], board.slots["generation"][1], board.slots["doing"][1] = 5, 6, b"model m/1"
    glance, before = board.glance(), board.snapshot()

    board.slots["pid"] = 0
    board.move(1, Event.REAP)
    board.set("generation", 5)

    assert (State.FORKED, 77) == glance.state(1)
    assert (State.EMPTY, 0) == glance.state(2)
    assert glance.slots.dtype.names
    assert {"word", "pid", "generation", "doing"} == set(glance.slots.dtype.names)
    assert all((glance.slots[name] == before.slots[name]).all() for name in glance.slots.dtype.names)
    assert 0 == glance.header["generation"]
    assert glance.slots.nbytes < SLOTS * 1000


def test_a_state_comes_after_what_led_to_it() -> None:
    """A copy that shows a worker in a state has all that the worker wrote before it came there."""
    board = Scoreboard.create(SLOTS)
    board.header["names"][0][63] = b"m/1"
    program = """
import sys
from server.scoreboard import Scoreboard
board = Scoreboard(int(sys.argv[1]))
print("on", flush=True)
count = 0
while True:
    count += 1
    board.slots["models"]["rows"][1][63] = count
    board.slots["phases"][1][0] = count
    board.slots["word"][1] = count
"""
    with writer(board, program):
        reads, last = 0, 0
        while reads < READS or not last:
            slot = board.snapshot().slots[1]
            counts = [int(slot["phases"][0]), int(slot["models"]["rows"][63])]
            last = int(slot["word"])
            assert min(counts) >= last
            reads += 1


def test_only_named_models_are_copied() -> None:
    """What no model has counted is not copied, however many places there are: a page of many workers is large."""
    board = Scoreboard.create(SLOTS)
    board.header["names"][0][3] = b"m/1"
    board.slots["models"]["rows"][:, 3:5] = 7

    assert [0, 0, 0, 7, 0] == board.snapshot().slots["models"]["rows"][1][:5].tolist()


def test_model_index() -> None:
    """A model is found by its whole key."""
    board = Scoreboard.create(1)
    board.header["names"][0][0] = b"net/1"
    board.header["names"][0][1] = b"net/10"

    assert [0, 1, None, None] == [board.model_index(key) for key in ("net/1", "net/10", "net", "net/100")]


def test_words_are_whole() -> None:
    """While another process flips words as fast as it can, a reader only ever sees one or the other, also in a copy."""
    board = Scoreboard.create(SLOTS)
    board.header["names"][0][3] = b"m/1"
    whole = {0, ONE, OTHER}
    seen: set[int] = set()

    with writer(board, FLIP):
        reads = 0
        while reads < READS or len(seen) < len(whole) - 1:
            snapshot = board.snapshot()
            words = {
                int(board.slots["word"][1]),
                board.get("notice"),
                int(snapshot.slots["word"][1]),
                int(snapshot.header["notice"]),
                int(snapshot.slots["models"]["success_ns"][1][3]),
            }
            assert words <= whole
            assert unpack(int(board.slots["word"][1])) in {unpack(ONE), unpack(OTHER)}
            seen |= words
            reads += 1

    assert {ONE, OTHER} <= seen
    assert [State.EMPTY, State.EMPTY] == [board.state(0), board.state(2)]


def test_writer_dies_anywhere() -> None:
    """A writer that is killed in the middle leaves a whole word, blocks nobody, and another goes on where it stopped."""
    board = Scoreboard.create(SLOTS)
    for _ in range(3):
        with writer(board, FLIP) as process:
            process.kill()
            process.wait()

            assert {int(word) for word in board.slots["word"]} <= {0, ONE, OTHER}
            assert board.snapshot().state(1) in {unpack(ONE), unpack(OTHER)}
    board.renew(1, 5)
    assert 5 == board.snapshot().state(1)[1]


def test_attach() -> None:
    """A process that got the descriptor over an exec reads and writes the same page."""
    board = Scoreboard.create(SLOTS)
    board.set("generation", 41)
    program = """
import sys
from server.scoreboard import Scoreboard
from server.states import Event
board = Scoreboard(int(sys.argv[1]))
board.slots["requests"][2] = board.get("generation") + 1
board.move(2, Event.FORK, 7)
print("on", len(board.slots), flush=True)
"""
    command = [sys.executable, "-c", program, str(board.fd)]

    answer = subprocess.run(command, cwd=Path(__file__).parents[2], pass_fds=[board.fd], capture_output=True, check=True)

    assert b"on %d\n" % SLOTS == answer.stdout
    assert 42 == board.slots["requests"][2]
    assert (State.FORKED, 7) == board.snapshot().state(2)


def test_writers_do_not_meet() -> None:
    """Processes that count in neighbouring slots lose nothing of each other's."""
    board = Scoreboard.create(2)
    program = """
import sys
from server.scoreboard import Scoreboard
board = Scoreboard(int(sys.argv[1]))
slot = board.slots[SLOT]
for _ in range(20000):
    slot["requests"] += 1
    slot["durations"][14] += 1
print("on", flush=True)
"""
    with writer(board, program.replace("SLOT", "0")), writer(board, program.replace("SLOT", "1")):
        pass

    assert [20000, 20000] == board.slots["requests"].tolist()
    assert [20000, 20000] == board.slots["durations"][:, 14].tolist()


def test_no_wait_for_a_stopped_writer() -> None:
    """A reader does not wait for a writer that stands still."""
    board = Scoreboard.create(SLOTS)
    with writer(board, FLIP) as process:
        process.send_signal(signal.SIGSTOP)

        assert board.snapshot().state(1) in {unpack(ONE), unpack(OTHER)}
