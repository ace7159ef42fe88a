"""What the command line takes, with its bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DAY = 86400


def parser() -> argparse.ArgumentParser:
    """The parser of `blue_green`."""
    made = argparse.ArgumentParser(
        prog="python3 -m deploy.haproxy.blue_green",
        description="Start the server that is to come, wait for its proof, shift the traffic to it, watch it, go back by itself.",
    )
    seconds = _between(0, DAY)
    add = made.add_argument
    add(
        "--socket",
        type=Path,
        default=Path("/run/haproxy/warmfork.sock"),
        help="HAProxy's stats socket, level admin (%(default)s)",
    )
    add("--backend", default="warmfork", help="HAProxy's backend of the two servers (%(default)s)")
    add("--start-timeout", type=seconds, default=600.0, help="seconds until the new server is ready (%(default)g)")
    add(
        "--steps",
        type=_between(0, 100),
        nargs="*",
        default=[10.0, 50.0],
        help="per cent of the traffic, before all of it (10 50)",
    )
    add("--step-seconds", type=seconds, default=10.0, help="seconds of each step (%(default)g)")
    add("--bake", type=seconds, default=120.0, help="seconds of all the traffic under watch (%(default)g)")
    p95 = made.add_mutually_exclusive_group()
    p95.add_argument(
        "--p95-factor", type=_between(1, 1000), default=1.5, help="bound: p95 by that of the old server (%(default)g)"
    )
    p95.add_argument("--p95-ms", type=_between(0.001, 1000 * DAY), help="bound: p95 in milliseconds; the old one is not measured")
    add("--baseline", type=seconds, default=30.0, help="seconds for which the old server is measured first (%(default)g)")
    add("--failed", type=_between(0, 1), default=0.01, help="bound: share of requests that fail (%(default)g)")
    add("--requests", type=_whole, default=100, help="requests that a verdict needs (%(default)d)")
    add("--keep-old", type=seconds, metavar="SECONDS", help="end the old server after so long; it runs on if this is not given")
    add("--stop-timeout", type=seconds, default=90.0, help="seconds from TERM to the end of a server (%(default)g)")
    add("command", nargs="*", help="starts the new server, in the foreground; none: it runs already")
    return made


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            message = f"must be {low:g} to {high:g}, is {text!r}"
            raise argparse.ArgumentTypeError(message)
        return value

    return number


def _whole(text: str) -> int:
    return int(_between(0, 1_000_000_000)(text))
