"""The command line: `python -m workloads [name ...]` runs the scripts against servers it starts, and prints a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.report import Figure, Report, table
from workloads.stages import FULL, MODELS, QUICK, RESULTS, Stage

NAMES = ("steady", "hostile", "crash", "reload", "scale_out", "haproxy")


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
    started = time.monotonic()
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(prefix="warmfork-load-") as folder:
        for model in given.model or MODELS:

            def say(what: str, model: str = model) -> None:
                print(f"[{time.monotonic() - started:5.0f} s] {model}: {what}", file=sys.stderr, flush=True)

            say("begins")
            stage = Stage(model, Path(folder), QUICK if given.quick else FULL, say)
            for name in names:
                began = time.monotonic()
                found = getattr(stage, name)()
                reports |= found
                say(f"{name} took {time.monotonic() - began:.0f} s")
    took = Report([Figure("from the beginning to the end", time.monotonic() - started, "s")])
    print(table({**reports, "all": took}))
    return int(any(report.broken for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
