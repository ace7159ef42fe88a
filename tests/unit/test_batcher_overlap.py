"""Engines whose work is on another device: their batches run beside the loop, which goes on with everybody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from server.models.model import Model
from server.refusals import AbandonedError, LateError, ModelFailedError
from server.tensors import Array, Tensors
from tests.unit.fakes import FakeSession, model
from tests.unit.parked import LONG, Line, came, row, sizes

SIZES = [1, 2, 4, 8]
BAD = 13.0


@dataclass
class Device:
    """Something beside the processor: each run says that it has begun, then takes until it is let go."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    threads: list[int] = field(default_factory=list)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """One run."""
        self.threads.append(threading.get_ident())
        self.begun.release()
        assert self.go.acquire(timeout=LONG)
        if (inputs["x"] == BAD).any():
            message = "thirteen"
            raise ValueError(message)
        return {"y": inputs["x"]}


def beside(device: Device, **toml: object) -> Model:
    """A model whose engine works on `device`."""
    made = model(device.run, **{"batch_sizes": SIZES, **toml})  # type: ignore[arg-type] # named and indexed by the test
    assert isinstance(made.session, FakeSession)
    made.session = FakeSession(device.run, made.session.inputs, made.session.outputs, overlaps=True)
    return made


@contextmanager
def lines(*models: Model) -> Iterator[Line]:
    """A line whose threads are let go in the end, whatever the test came to."""
    line = Line(*models, steady=lambda _model, _shape: 5.0)
    try:
        yield line
    finally:
        for each in models:
            device = getattr(getattr(each.session, "answer", None), "__self__", None)
            if isinstance(device, Device):
                device.go.release(1000)
        line.run()


def begun(device: Device, line: Line) -> None:
    """Turn until the device has begun a run."""

    def has() -> bool:
        return device.begun.acquire(blocking=False)

    line.run(has)


def test_others_are_answered_meanwhile() -> None:
    """While a batch runs on a device, requests for another model come, run and are answered."""
    device = Device()
    slow, quick = beside(device, name="slow"), model(name="quick", index=1, batch_sizes=SIZES)
    with lines(slow, quick) as line:
        waits = line.ask(slow, row(1))
        begun(device, line)
        for value in (1, 2, 3):
            asked = line.ask(quick, row(value))
            line.run(lambda asked=asked: asked.done)  # type: ignore[misc] # mypy knows no defaults of lambdas
            assert asked.right
            assert not waits.done
        device.go.release()
        line.run(lambda: waits.done)
        assert waits.right
    assert [threading.get_ident()] != device.threads


def test_the_next_batch_gathers() -> None:
    """What comes for a model while its batch runs is the next batch, and one batch of it runs at a time."""
    device = Device()
    made = beside(device)
    with lines(made) as line:
        first = line.ask(made, row(100))
        begun(device, line)
        asked = [line.ask(made, row(number + 1)) for number in range(8)]
        for _ in range(20):
            line.batcher.turn()
        assert (8, False, False) == (line.batcher.waiting, line.batcher.ready, line.batcher.full)
        assert [1] == sizes(made)
        device.go.release()
        line.run(lambda: first.done)
        begun(device, line)
        device.go.release()
        line.run(lambda: all(each.done for each in asked))
        assert first.right
        assert all(each.right for each in asked)
        assert [1, 8] == sizes(made)
        assert (2, 9, 0) == tuple(line.counted()[name] for name in ("batches", "rows", "cold"))


def test_one_thread_for_each_engine() -> None:
    """Models of one engine share its thread; another engine's run beside them."""
    one, other = Device(), Device()
    models = [beside(one, name="a"), beside(one, name="b", index=1), beside(other, name="c", index=2)]
    models[2].platform = "another"
    with lines(*models) as line:
        for _ in range(3):
            asked = [line.ask(each, row(number + 1)) for number, each in enumerate(models)]
            begun(one, line)
            begun(other, line)
            assert not one.begun.acquire(blocking=False), "two runs of one engine at once"
            one.go.release(2)
            other.go.release()
            line.run(lambda: all(each.done for each in asked))  # noqa: B023 - run before the loop goes on
            assert one.begun.acquire(timeout=LONG)
            assert all(each.right for each in asked)
    assert 1 == len(set(one.threads))
    assert 1 == len(set(other.threads))
    assert 3 == len({*one.threads, *other.threads, threading.get_ident()})


def test_no_thread_where_nothing_overlaps() -> None:
    """A worker on the processor alone runs everything in its one thread."""
    ran: list[int] = []

    def run(inputs: Tensors) -> dict[str, Array]:
        ran.append(threading.get_ident())
        return {"y": inputs["x"]}

    made = model(run)
    before = threading.active_count()
    line = Line(made)
    line.ask(made, row(1))
    line.run()
    assert [threading.get_ident()] == ran
    assert before == threading.active_count()
    assert {} == line.batcher.assistants.queues
    assert -1 == line.batcher.assistants.wake


@pytest.mark.parametrize("bad", [[2], [0, 1, 2, 3]])
def test_a_failure_beside_the_loop(bad: list[int]) -> None:
    """A batch that fails on a device is halved there, and each of its requests has what is its own."""
    device = Device()
    made = beside(device)
    with lines(made) as line:
        device.go.release(100)
        asked = [line.ask(made, row(BAD if place in bad else place + 100)) for place in range(4)]
        line.run(lambda: all(each.done for each in asked))
        for place, each in enumerate(asked):
            assert (place not in bad) == each.right
            assert (place in bad) == isinstance(each.error, ModelFailedError)
        again = line.ask(made, row(1))
        line.run(lambda: again.done)
        assert again.right
    assert 1 == len(set(device.threads))


def test_gone_while_its_batch_runs() -> None:
    """A client that leaves while its batch runs is forgotten, and the others of the batch have their answers."""
    device = Device()
    made = beside(device)
    with lines(made) as line:
        asked = [line.ask(made, row(number + 1)) for number in range(3)]
        begun(device, line)
        line.abandon(asked[1])
        assert isinstance(asked[1].error, AbandonedError)
        device.go.release()
        line.run(lambda: asked[0].done and asked[2].done)
        assert asked[0].right
        assert asked[2].right
        assert asked[1].answer is None
    assert [[1, 2, 3]] == came(made)
    assert line.tasks.count == len(line.tasks.idle)
    assert 0 == line.batcher.waiting


def test_late_while_a_batch_runs() -> None:
    """Those who wait behind a batch on a device are told when they are late, and not only when it ends."""
    device = Device()
    made = beside(device)
    with lines(made) as line:
        first = line.ask(made, row(1))
        begun(device, line)
        late = line.ask(made, row(2), LONG + 1)
        line.batcher.turn()
        assert isinstance(late.error, LateError)
        assert not first.done


def test_a_hung_device_is_seen() -> None:
    """The watchdog's limit holds for a batch that runs beside the loop, though the loop itself goes on."""
    device = Device()
    made = beside(device)
    line = Line(made)
    bitten = threading.Event()

    def bite() -> None:
        line.watchdog.stop()
        bitten.set()

    line.watchdog.bite = bite
    line.watchdog.start(0.05)
    asked = line.ask(made, row(1))
    begun(device, line)
    while not bitten.is_set():
        line.loop.turn(0.01)
        line.batcher.turn()
    assert not asked.done
    line.watchdog.biting = False  # in earnest the process has ended by now
    device.go.release()
    line.run(lambda: asked.done)
    assert asked.right
