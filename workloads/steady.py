"""Nothing happens: the first requests of a fresh server are like all others, and windows differ by no more than noise.

`locust -f workloads/steady.py --headless -H http://127.0.0.1:8000`
"""

from __future__ import annotations

from bench.report import Figure
from workloads.run import Run
from workloads.workload import Workload, users


def _act(run: Run) -> None:
    """The first requests, then windows of two kinds that do not differ."""
    run.begin()
    run.pairs("nothing", lambda: None)


def _judge(run: Run) -> list[Figure]:
    return [
        run.failed(),
        run.first(run.bound("first")),
        run.compare("p99, windows of one kind ÷ the other", "nothing", 0.99, run.bound("p99")),
    ]


Users = users(Workload("steady", _act, _judge, {"first": 2.0, "p99": 1.2}))
