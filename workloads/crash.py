"""`kill -9` of a worker every second, or as often as the warm pool fills: what was running in it fails, and nothing else.

`locust -f workloads/crash.py --headless -H http://127.0.0.1:8000`; the server needs two workers and `WARMFORK_STANDBY=1`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import psutil

from bench.report import Figure
from workloads.owner import held
from workloads.run import Run
from workloads.watch import until
from workloads.windows import Answer
from workloads.workload import Workload, users

EVENT = "kill -9"
_PAUSE = 0.005
"""Seconds between two looks while a worker is missing: what is measured is short."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One worker killed."""

    at: float
    gone: float
    """When the process had ended, and with it its connections."""
    back: float
    """When as many others took traffic as before."""
    ports: frozenset[int]
    """Of the clients whose connections it had."""

    def cost(self, answer: Answer) -> bool:
        """Whether a failed request was running in this worker."""
        return answer.port in self.ports and answer.sent <= self.gone and answer.came >= self.at


def _act(run: Run) -> None:
    kills: list[Kill] = []
    full: list[float] = []
    turns = cycle(range(run.master.wanted()))

    def kill_on() -> None:
        end = run.now + run.options.window
        while run.now < end:
            kills.append(_kill(run, sorted(run.master.workers())[next(turns)]))
            until(run.master.settled, "a full warm pool")
            full.append(run.now - kills[-1].at)
            time.sleep(max(kills[-1].at + run.options.every - run.now, 0))
        time.sleep(run.options.every)  # what the last one costs belongs to this window

    run.pairs(EVENT, kill_on)
    run.details |= {"kills": kills, "seconds to a full pool": full}


def _kill(run: Run, pid: int) -> Kill:
    wanted, process = run.master.wanted(), psutil.Process(pid)
    process.suspend()  # it accepts no more, so that we know which connections it has
    ports = held(pid, run.port, [client.port for client in run.traffic.clients])
    at = run.now
    run.mark("")
    process.kill()
    # Not a zombie: where there are threads, the last of them closes the connections.
    until(lambda: not psutil.pid_exists(pid), "the end of a killed worker", pause=_PAUSE)
    gone = run.now
    until(lambda: len(run.master.workers() - {pid}) == wanted, "as many workers as before", pause=_PAUSE)
    return Kill(at, gone, run.now, ports)


def _judge(run: Run) -> list[Figure]:
    kills: list[Kill] = run.details["kills"]
    failed = [answer for answer in run.traffic.answers if answer.error]
    others = sum(not any(kill.cost(answer) for kill in kills) for answer in failed)
    limit = 2e-3 * median(run.values("", 0.99))
    every = run.options.every
    spans = [range(int((each.end - each.begin) / every)) for each in run.of("")]
    quiet = [each.begin + every * turn for each, span in zip(run.of(""), spans, strict=True) for turn in span]
    slow = [answer for answer in run.traffic.answers if answer.latency > limit and not answer.error]
    back, none = (median(_over(slow, moments, every)) for moments in ([each.at for each in kills], quiet))
    bound = run.bound("back-ms")
    return [
        Figure("requests that failed and ran in no killed worker", others, bound=0),
        Figure("requests that failed in a killed one, per kill", (len(failed) - others) / len(kills)),
        Figure(
            "from the kill to as many workers as before, median", median(each.back - each.at for each in kills) * 1e3, "ms", bound
        ),
        Figure("from the kill to the last answer over twice the p99 without, median", back, "ms", max(bound, none), none),
        run.compare("p95, with kills ÷ without", EVENT, 0.95, None),
        Figure("from the kill to a full warm pool, median", median(run.details["seconds to a full pool"]), "s"),
        Figure("kills", len(kills)),
    ]


def _over(slow: Sequence[Answer], moments: Sequence[float], every: float) -> list[float]:
    """For each moment, how many ms later the last slow request was answered of those meant for the time until the next."""
    return [max((each.came - at for each in slow if 0 <= each.due - at < every), default=0.0) * 1e3 for at in moments]


EVERY = {"type": float, "default": 1.0, "help": "seconds between two kills, or longer, until the warm pool is full again"}
Users = users(Workload("crash", _act, _judge, {"back-ms": 50.0}, {"every": EVERY}))
