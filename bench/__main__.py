"""The command line: `python -m bench [name ...]` runs the benchmarks, writes `bench-results/*.json` and prints a table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import batching, boot, cold, compiled, embed, images, memory, on_gpu, probes, scaling, tail, throughput
from bench.report import Report, Say, table, write

BENCHMARKS: Mapping[str, Callable[[Path, Say], Report]] = {
    "cold": cold.run,
    "copy": memory.run,
    "embed": embed.run,
    "compile": compiled.run,
    "boot": boot.run,
    "probes": probes.run,
    "http": throughput.run,
    "batch": batching.run,
    "image": images.run,
    "tail": tail.run,
    "scale": scaling.run,
}
"""Each is given an empty folder to work in, which all of a run share, and a way to say how far it is."""
ON_GPU: Mapping[str, Callable[[Path, Say], Report]] = {"gpu": on_gpu.run}
"""Those that need a GPU, and run where they are named."""

RESULTS = Path("bench-results")


def main() -> int:
    """Run what is named, or everything; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the server; results in bench-results/.")
    known = {**BENCHMARKS, **ON_GPU}
    which = f"which: {', '.join(known)}; all if none is given, but for those that need a GPU ({', '.join(ON_GPU)})"
    parser.add_argument("names", nargs="*", metavar="name", help=which)
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(known)}")
    started = time.monotonic()
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(prefix="warmfork-bench-") as folder:
        for name in names:

            def say(what: str, name: str = name) -> None:
                print(f"[{time.monotonic() - started:4.0f} s] {name}: {what}", file=sys.stderr, flush=True)

            say("begins")
            reports[name] = known[name](Path(folder), say)
            write(reports[name], RESULTS / f"{name}.json")
    print(table(reports))
    return int(any(report.broken for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
