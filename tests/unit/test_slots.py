"""Who has which slot, what stays in it, and how long the next worker waits."""

from __future__ import annotations

import os

import pytest

from server.master.slots import OWN_END_SECONDS, Slots
from server.scoreboard import Scoreboard, now_ms, unpack
from server.states import Event, Role, State

COUNT = 3
BOOT = 10.0
WAY = (Event.LOAD, Event.WARM, Event.PROVE, Event.ARRIVE, Event.OPEN, Event.LEAVE)


@pytest.fixture
def slots() -> Slots:
    """Three free slots."""
    return Slots(Scoreboard.create(COUNT), BOOT)


def take(slots: Slots, generation: int = 1, role: Role = Role.ACTIVE, moves: int = 0) -> int:
    """Take a slot and go some of the way."""
    index = slots.take(generation, role)
    assert index is not None
    for event in WAY[:moves]:
        slots.board.move(index, event)
    return index


def test_take_and_free(slots: Slots) -> None:
    """Slots are given out lowest first, none twice; the one that was taken back is the next."""
    assert [0, 1, 2] == [take(slots) for _ in range(COUNT)]

    slots.free(1)

    assert (1, None) == (slots.take(2, Role.STANDBY), slots.take(2, Role.ACTIVE))
    assert [2, 1] == [slots.board.slots["generation"][1], slots.board.slots["generation"][0]]
    assert Role.STANDBY == slots.board.slots["role"][1]


@pytest.mark.parametrize(
    ("role", "moves", "leave", "missed"),
    [
        (Role.ACTIVE, 5, False, True),
        (Role.ACTIVE, 6, False, True),
        (Role.ACTIVE, 5, True, False),
        (Role.ACTIVE, 3, False, False),
        (Role.STANDBY, 5, False, False),
    ],
)
def test_missed(slots: Slots, role: Role, moves: int, *, leave: bool, missed: bool) -> None:
    """Whoever replaces a worker that took traffic is missed, also after one that failed to; and only who comes first."""
    take(slots, role=role, moves=moves)
    slots.board.slots["leave"][0] = leave
    slots.free(0)

    found = [bool(slots.board.slots["missed"][take(slots)])]
    slots.free(0)
    found += [bool(slots.board.slots["missed"][take(slots)]) for _ in range(2)]

    assert [missed, missed, False] == found


def test_missed_by_nobody(slots: Slots) -> None:
    """Where the warm pool has somebody for the place, who refills that is not missed; nor is who is held back."""
    for index in [take(slots, moves=5), take(slots, moves=5)]:
        slots.free(index)
    assert slots.fill()

    found = [bool(slots.board.slots["missed"][take(slots, role=role)]) for role in (Role.STANDBY, Role.ACTIVE)]

    assert [False, True] == found
    assert not slots.fill()


def test_full_changes_nothing(slots: Slots) -> None:
    """A worker more than there are slots gets none, and no other loses its own."""
    for _ in range(COUNT):
        take(slots, moves=5)
    before = slots.board.slots.tobytes()

    assert slots.take(9, Role.ACTIVE) is None
    assert before == slots.board.slots.tobytes()


def test_counters_outlive_the_worker(slots: Slots) -> None:
    """What a worker said of itself is cleared for the next one; what it has counted stays."""
    index = take(slots)
    slot = slots.board.slots[index]
    kept = ("requests", "errors", "durations", "duration_sum")
    cleared = ("pid", "barrier", "leave", "phases", "status")
    for field in (*kept, *cleared):
        slot[field] = 5
    slot["device"] = slot["doing"] = b"something"
    slot["models"]["success"] = slot["models"]["cold"] = slot["models"]["cold_shapes"] = 6
    slot["models"]["sizes"]["count"] = 6
    slot["models"]["shapes"] = 7

    slots.free(index)
    assert 0 == slot["pid"]
    assert index == take(slots, generation=2)

    assert all((slot[field] == 5).all() for field in kept)
    assert not any(slot[field].any() for field in (*cleared, "device", "doing"))
    assert all((slot["models"][field] == 6).all() for field in ("success", "cold", "cold_shapes"))
    assert (slot["models"]["sizes"]["count"] == 6).all()
    assert not slot["models"]["shapes"]["first_ms"].any()


def test_deadline(slots: Slots) -> None:
    """A worker's deadline is set before it exists: its back-off and its boot."""
    slots.backoff.failures[0] = 3
    before = now_ms()

    state, deadline = unpack(int(slots.board.slots["word"][take(slots)]))

    assert State.FORKED is state
    assert before + 14_000 <= deadline <= now_ms() + 14_000
    assert 3 == slots.board.slots["failures"][0]


@pytest.mark.parametrize("moves", range(len(WAY) + 1))
def test_free(slots: Slots, moves: int) -> None:
    """A slot is free after its worker's end, in whatever state; whose fault the end was is for others to say."""
    index = take(slots, moves=moves)
    slots.backoff.failures[0] = 4

    slots.free(index)

    assert State.EMPTY is slots.board.state(index)
    assert 4 == slots.backoff.failures[0]


def test_free_after_failure(slots: Slots) -> None:
    """So it is after an end that the worker itself has announced."""
    index = take(slots, moves=2)
    slots.board.move(index, Event.FAIL)

    slots.free(index)

    assert State.EMPTY is slots.board.state(index)
    assert index == take(slots)


def test_bells(slots: Slots) -> None:
    """There is a bell for every slot that is taken and no other, and a generation's are rung alone."""
    first, second, third = take(slots, 1), take(slots, 2), take(slots, 2)
    slots.free(second)
    assert {first, third} == set(slots.barrier.bells)

    slots.wake(2)

    with pytest.raises(BlockingIOError):
        os.eventfd_read(slots.barrier.bells[first])
    assert 1 == os.eventfd_read(slots.barrier.bells[third])


def test_views(slots: Slots) -> None:
    """Workers are found by generation, by role, by state; who was told to leave does not count as staying."""
    old, new, spare = take(slots, 1, moves=5), take(slots, 2, moves=4), take(slots, 2, Role.STANDBY)
    assert ([old], [new, spare], []) == tuple(list(slots.of(generation)) for generation in (1, 2, 3))
    assert ([new], [spare]) == (slots.staying(2, Role.ACTIVE), slots.staying(2, Role.STANDBY))
    assert ([new], []) == (slots.standing(2, State.WAITING), slots.standing(2, State.ACTIVE))
    slots.board.slots["leave"][new] = 1

    assert [spare] == slots.staying(2)
    slots.free(spare)
    assert [new] == list(slots.of(2))


def test_overdue(slots: Slots) -> None:
    """A worker that boots and is long past its deadline is overdue; one just past it still ends itself."""
    booting, fresh, serving = take(slots, moves=2), take(slots, moves=2), take(slots, moves=5)
    assert [] == slots.overdue()
    slots.board.renew(booting, now_ms() - OWN_END_SECONDS * 1000 - 1)
    slots.board.renew(fresh, now_ms() - 10)
    slots.board.renew(serving, 0)

    assert [booting] == slots.overdue()


def test_gpus() -> None:
    """Who takes a slot gets a GPU with it, which is written there; whoever replaces one gets the same, on whatever slot."""
    slots = Slots(Scoreboard.create(8), BOOT, gpus=2)
    taken = [take(slots) for _ in range(3)]
    assert [0, 1, 0] == slots.board.slots["gpu"][taken].tolist()
    for index in taken:
        before = int(slots.board.slots["gpu"][index])
        slots.free(index)
        assert before == next(slots.coming_gpus(1)) == slots.board.slots["gpu"][take(slots)]
    others = [take(slots, 2) for _ in range(3)]
    assert [1, 0, 1] == slots.board.slots["gpu"][others].tolist()


@pytest.mark.parametrize("field", ["leave", "spent", ""])
@pytest.mark.parametrize("gone", range(3))
def test_gpu_of_who_leaves(field: str, gone: int) -> None:
    """Whoever replaces a worker that still leaves gets its GPU, also where the other ones have as many."""
    slots = Slots(Scoreboard.create(8), BOOT, gpus=2)
    taken = [take(slots, moves=5) for _ in range(3)]
    if field:
        slots.board.slots[field][taken[gone]] = 1
    else:
        slots.board.move(taken[gone], Event.LEAVE)
    assert slots.board.slots["gpu"][taken[gone]] == next(slots.coming_gpus(1))


def test_no_gpus(slots: Slots) -> None:
    """Where there are none, nothing is written."""
    assert [] == list(slots.coming_gpus(1))
    assert [0, 0] == slots.board.slots["gpu"][[take(slots), take(slots)]].tolist()
