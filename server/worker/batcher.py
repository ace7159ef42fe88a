"""Batch what is ready: requests park here, and one batch at a time runs, of the model whose turn it is.

No timer and no delay: the worker's loop calls `turn` when nothing is left to read. At low load a batch is one request and nothing
waits; under load what came while the last batch ran is the next one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

from server.models.model import Model, Prepared
from server.models.shapes import BATCH, Shape
from server.refusals import AbandonedError
from server.tensors import Array
from server.turnstile import Execute, full, late
from server.worker.assistant import Assistants
from server.worker.tasks import Tasks
from server.worker.watchdog import Watchdog

DISPATCH_MS = 0.1
"""What a batch costs besides its run. Differences below it, where all sizes of a quick model take nothing, mean nothing."""

SteadyMs = Callable[[Model, Shape], float]
Answers = list["dict[str, Array] | BaseException"]


@dataclass(eq=False, slots=True)
class Job:
    """One request, or a part of one, that waits for its batch."""

    part: Prepared
    rows: int
    queued_ns: int
    late_ns: int
    """When it has waited for too long."""
    task: greenlet | None
    """Who waits for it; None when the client is gone."""
    answer: dict[str, Array] | BaseException | None = None


@dataclass(eq=False, slots=True)
class Queue:
    """The jobs of one model, oldest first."""

    model: Model
    execute: Execute
    jobs: deque[Job] = field(default_factory=deque)
    running: bool = False
    """While a batch of it runs beside the loop."""
    largest: int = 1
    """Rows of its largest batch."""
    rates: dict[Shape, list[tuple[int, float]]] = field(default_factory=dict)
    """For each shape without its rows the declared batch sizes and the milliseconds that each takes, largest first."""


class Batcher:
    """The line of a worker that has one thread. Requests run in greenlets of `tasks`."""

    def __init__(self, tasks: Tasks, watchdog: Watchdog, assistants: Assistants, steady_ms: SteadyMs) -> None:
        """Park requests of `tasks`; `watchdog` is told of each batch; `assistants` run what another device calculates."""
        self.tasks = tasks
        self.watchdog = watchdog
        self.assistants = assistants
        self.steady_ms = steady_ms
        self.interrupted = False
        self.most = 0
        self.patience_ns = 0
        self.queues: dict[int, Queue] = {}
        """By model, the one that ran longest ago first."""
        self.waiting = 0
        self.next_late_ns = 0
        """No job is late before; 0 while none waits."""

    def limit(self, most: int, patience: float) -> None:
        """Let `most` requests wait (`WARMFORK_MAX_QUEUE`), for `patience` seconds (`WARMFORK_REQUEST_TIMEOUT`)."""
        self.most = most
        self.patience_ns = int(patience * 1e9)

    def admit(self) -> None:
        """Raise `BusyError` if as many requests wait as may; one always may, since each does until the loop has read all."""
        if self.waiting >= max(self.most, 1):
            raise full(self.waiting, self.most)

    def run(self, execute: Execute, model: Model, part: Prepared, received_ns: int) -> dict[str, Array]:
        """Wait for a batch and give what `part` gets of it. Raises `LateError`, or what the model raised for this part alone."""
        queue = self.queues.get(id(model))
        if queue is None:
            queue = self.queues[id(model)] = Queue(model, execute)
            if model.mixes:
                queue.largest = model.plan.lengths[BATCH][-1]
        job = Job(part, model.plan.rows(part.came), time.monotonic_ns(), received_ns + self.patience_ns, getcurrent())
        queue.jobs.append(job)
        self.waiting += 1
        self.next_late_ns = min(self.next_late_ns or job.late_ns, job.late_ns)
        try:
            self.tasks.park()
        except AbandonedError:
            job.task = None
            if job in queue.jobs:
                queue.jobs.remove(job)
                self.waiting -= 1
            raise
        if isinstance(job.answer, BaseException):
            raise job.answer
        return job.answer or {}

    @property
    def ready(self) -> bool:
        """Whether there is a batch to run now."""
        return self.waiting > 0 and any(queue.jobs and not queue.running for queue in self.queues.values())

    @property
    def full(self) -> bool:
        """Whether some model has as many rows waiting as its largest batch takes: there is nothing to wait for."""
        return any(len(queue.jobs) >= queue.largest and not queue.running for queue in self.queues.values())

    def turn(self) -> None:
        """Refuse what is late, then run one batch of the model that ran longest ago, and let its requests go on."""
        if self.waiting and self.next_late_ns <= time.monotonic_ns():
            self._expire()
        key = next((key for key, queue in self.queues.items() if queue.jobs and not queue.running), None)
        if key is None:
            return
        queue = self.queues[key] = self.queues.pop(key)
        jobs, shape = self._take(queue)
        if not queue.model.session.overlaps:
            self._resume(jobs, self._results(queue, jobs, shape))
            return

        def ran(answers: Answers) -> None:
            queue.running = False
            self._resume(jobs, answers)

        queue.running = True
        self.assistants.run(queue.model.platform, lambda: self._results(queue, jobs, shape), ran)

    def _resume(self, jobs: Sequence[Job], answers: Answers) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            job.answer = answer
            if job.task:
                job.task.switch()

    def _results(self, queue: Queue, jobs: Sequence[Job], shape: Shape) -> Answers:
        """Run `jobs` in one batch. If that fails, run each half: what is wrong with one of them must not be the others' fault."""
        now = time.monotonic_ns()
        self.watchdog.begin()
        try:
            waited = sum(now - job.queued_ns for job in jobs)
            return list(queue.execute(queue.model, [job.part for job in jobs], shape, waited))
        except BaseException as error:  # noqa: BLE001 - a model may raise anything, and the one request whose it is raises it again
            if len(jobs) == 1:
                return [error]
        finally:
            self.watchdog.end()
        middle = len(jobs) // 2
        halves = (jobs[:middle], jobs[middle:])
        return [answer for half in halves for answer in self._results(queue, half, self._smallest(queue, half))]

    def _take(self, queue: Queue) -> tuple[list[Job], Shape]:
        """The oldest job and, as far as there is room, those after it that may share its batch."""
        first = queue.jobs[0]
        if not queue.model.mixes or len(queue.jobs) == 1:
            queue.jobs.popleft()
            self.waiting -= 1
            return [first], first.part.shape
        rest = first.part.rest
        fitting = [job for job in queue.jobs if job.part.rest == rest]
        size = self._size(queue, first, sum(job.rows for job in fitting))
        taken, rows = [], 0
        for job in fitting:
            if rows + job.rows <= size:
                taken.append(job)
                rows += job.rows
                if rows == size:
                    break
        if taken == fitting and len(fitting) == len(queue.jobs):
            queue.jobs.clear()
        else:
            gone = set(map(id, taken))
            queue.jobs = deque(job for job in queue.jobs if id(job) not in gone)
        self.waiting -= len(taken)
        return taken, self._smallest(queue, taken)

    def _size(self, queue: Queue, first: Job, rows: int) -> int:
        """The declared batch size that answers most rows a second, by what each took when it was warmed.

        Padding is not free: five rows are better run as four and one where time grows with rows, as eight where it does not.
        """
        rest = first.part.rest
        rates = queue.rates.get(rest)
        if rates is None:
            sizes = sorted(queue.model.plan.lengths[BATCH], reverse=True)
            rates = queue.rates[rest] = [(size, self.steady_ms(queue.model, (size, *rest))) for size in sizes]
        able = [(size, ms) for size, ms in rates if size >= first.rows]
        if not all(ms for _, ms in able):
            return next((size for size, _ in reversed(able) if size >= rows), able[0][0])
        return max(able, key=lambda each: min(each[0], rows) / (each[1] + DISPATCH_MS))[0]

    def _smallest(self, queue: Queue, jobs: Sequence[Job]) -> Shape:
        """The smallest declared shape that holds `jobs`."""
        if not queue.model.mixes:
            return jobs[0].part.shape
        rows = sum(job.rows for job in jobs)
        return (next(size for size in queue.model.plan.lengths[BATCH] if size >= rows), *jobs[0].part.rest)

    def _expire(self) -> None:
        """Refuse what has waited for too long."""
        now = time.monotonic_ns()
        expired: list[Job] = []
        for queue in self.queues.values():
            expired += [job for job in queue.jobs if job.late_ns <= now]
            queue.jobs = deque(job for job in queue.jobs if job.late_ns > now)
        self.waiting -= len(expired)
        self.next_late_ns = min((job.late_ns for queue in self.queues.values() for job in queue.jobs), default=0)
        self._resume(expired, [late(self.patience_ns / 1e9) for _ in expired])
