"""The command line: `python -m workloads [name ...]` runs the scripts against servers it starts, and prints a table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.report import Figure, Report, table, write
from workloads import moments
from workloads.stages import FULL, MODELS, QUICK, RESULTS, Stage

MOMENTS = "moments"
NAMES = ("steady", "hostile", "crash", "reload", "scale_out", "haproxy", MOMENTS)
"""All but the last are scripts of Locust, run with each model."""


def main() -> int:
    """Run what is named, or everything, with each model; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m workloads", description=f"Load tests; results in {RESULTS}/.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)}; all of them if none is given")
    parser.add_argument("--quick", action="store_true", help="short windows: to see that everything runs, not what it costs")
    parser.add_argument("--model", action="append", choices=MODELS, help="with which; all of them if none is given")
    given = parser.parse_args()
    names = given.names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no workload {unknown[0]!r}; there are {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end as well
    started = time.monotonic()

    def say(who: str, what: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {who}: {what}", file=sys.stderr, flush=True)

    reports: dict[str, Report] = {}

    def collect(title: str, run: Callable[[], Mapping[str, Report]]) -> None:
        try:
            reports.update(run())
        except Exception:  # noqa: BLE001 - what could not be run is broken, and the others go on
            traceback.print_exc()
            reports[title] = Report([Figure("could not be run: see above", 1, failed=True)])

    with tempfile.TemporaryDirectory(prefix="warmfork-load-") as folder:
        for model in given.model or MODELS:
            stage = Stage(model, Path(folder), QUICK if given.quick else FULL, partial(say, model))
            for name in [each for each in names if each != MOMENTS]:
                began = time.monotonic()
                collect(f"{name}-{model}", getattr(stage, name))
                say(model, f"{name} took {time.monotonic() - began:.0f} s")
        if MOMENTS in names:
            collect(MOMENTS, lambda: {MOMENTS: moments.run(Path(folder), partial(say, MOMENTS))})
            write(reports[MOMENTS], RESULTS / f"{MOMENTS}.json")
    took = Report([Figure("from the beginning to the end", time.monotonic() - started, "s")])
    print(table({**reports, "all": took}))
    return int(any(report.broken for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
