"""More workers under load, 1 → 6 by TTIN; or more servers behind HAProxy.

`locust -f workloads/scale_out.py --headless -H http://127.0.0.1:8000`; the server needs `WARMFORK_MAX_WORKERS=6`. With
`--haproxy models` the script starts HAProxy and the servers of that repository itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Figure
from workloads.fleet import Fleet
from workloads.run import Run
from workloads.watch import scale
from workloads.windows import Window, compare, percentile_ms
from workloads.workload import Workload, users

EVENT = "scale-out"
BACK = 0.05
"""Windows that pass when there is one worker again, before one without an event: clients of the others are coming back."""


def _prepare(run: Run) -> None:
    if run.options.haproxy:
        fleet = run.closing.enter_context(Fleet(Path(run.options.haproxy), run.options.most))
        run.at(fleet, fleet.port)


def _act(run: Run) -> None:
    """A window begins with the first signal and goes on when all are there; before the next there is one worker again."""
    unserved: list[int] = []
    cold: list[int] = []
    seconds: list[float] = []
    before: dict[int, int] = {}

    def grow() -> None:
        scale(run.master, run.options.most)
        seconds.append(run.now - run.marks[-1][0])
        before.update(run.master.served())
        run.rest()

    def back() -> None:
        after = run.master.served()
        unserved.append(sum(count == before.get(each, 0) for each, count in after.items()))
        cold.append(run.master.cold())
        scale(run.master, 1)
        run.rest(BACK)

    scale(run.master, 1)
    run.pairs(EVENT, grow, back)
    run.details |= {"unserved": unserved, "cold": cold, "seconds to grow": seconds}


def _judge(run: Run) -> list[Figure]:
    p95, p95_without, p99 = run.values(EVENT, 0.95), run.values("", 0.95), median(run.values("", 0.99))
    slowest, usual = ([each / p99 for each in run.values(event, 1)] for event in (EVENT, ""))
    middle, noise, bound = median(slowest), median(usual), run.bound("slowest")
    return [
        run.failed(),
        run.compare("p95, scale-out ÷ without", EVENT, 0.95, run.bound("p95")),
        *_parts(run),
        Figure("p95 in windows with a scale-out, median", median(p95), "ms", run.bound("p95-ms"), median(p95_without)),
        Figure(f"slowest ÷ p99 without, median, {bound:g} or as without", middle, "×", max(bound, noise), noise),
        Figure("slowest ÷ p99 without, in all windows", max(slowest), "×", control=max(usual)),
        Figure("workers that served nothing", max(run.details["unserved"]), bound=0),
        Figure("cold dispatches", max(run.details["cold"]), bound=0),
        Figure("from the first signal to all, median", median(run.details["seconds to grow"]), "s"),
    ]


def _parts(run: Run) -> list[Figure]:
    """What is felt in each part of a window, by the same part of its neighbour: having more of them may cost something as well.

    Of a plain gunicorn nobody knows when a worker is there.
    """
    if run.options.plain:
        return []

    def p95(event: str, *, joining: bool) -> list[float]:
        cuts = [(each, each.begin + seconds) for each, seconds in zip(run.of(event), run.details["seconds to grow"], strict=True)]
        parts = [Window(each.begin, cut, event) if joining else Window(cut, each.end, event) for each, cut in cuts]
        return [percentile_ms(each.of(run.traffic.answers), 0.95) for each in parts]

    return [
        compare(f"p95 {when} ÷ without", p95(EVENT, joining=joining), p95("", joining=joining), None)
        for when, joining in (("while they join", True), ("once all are there", False))
    ]


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "most": {"type": int, "default": 6, "help": "to how many"},
    "haproxy": {"default": "", "metavar": "MODELS", "help": "grow servers of this repository behind HAProxy instead"},
}
BOUNDS = {"p95": 1.1, "p95-ms": 200.0, "slowest": 2.0}
Users = users(Workload("scale_out", _act, _judge, BOUNDS, OPTIONS, _prepare))
