"""One run of a workload: the traffic, the server, windows one after another, and what is made of them."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from bench import repository
from bench.client import infer
from bench.report import Figure, Report
from workloads.traffic import Traffic
from workloads.watch import PAUSE, Master, Ours, Plain
from workloads.windows import Window, compare, percentile_ms, slowest_ms, stands_out

INPUTS: Mapping[str, Callable[[], repository.Inputs]] = {
    "resnet50": lambda: repository.image(1),
    "embed": lambda: repository.texts(1, 12),
    "dense": lambda: repository.row(1),
}
"""What each model is asked."""

FIRST = "first requests"
FEW = 10
"""How many those are: the slowest of more would be anybody's."""


class Run:
    """One run: a script calls `window`, `pairs` and `mark` while the traffic goes on, and then asks for figures."""

    def __init__(self, host: str, options: Namespace, name: str) -> None:
        """Prepare a run of the script `name` against the URL `host`, with the options that it was given."""
        self.options = options
        self.name = name
        place = urlsplit(host)
        self.host, self.port = place.hostname or "127.0.0.1", place.port or 8000
        self.traffic = Traffic(infer(self.options.model, INPUTS[self.options.model]()), self.options.rate)
        self.ours = None if self.options.plain else Ours(self.options.management)
        self.master: Master = self.ours or Plain(self.options.plain)
        self.windows: list[Window] = []
        self.marks: list[tuple[float, str]] = []
        self.probes: Counter[int] = Counter()
        """Answers of `/readyz` by status; 0 where there was none in time."""
        self.details: dict[str, Any] = {}
        self.closing = ExitStack()
        """What the script has started."""

    @property
    def now(self) -> float:
        """On the clock of answers and windows."""
        return time.perf_counter()

    def status(self) -> dict[str, Any]:
        """`/status`. Raises `RuntimeError` for a server that has none."""
        if self.ours is None:
            message = "only our own server has a /status"
            raise RuntimeError(message)
        return self.ours.status()

    def at(self, master: Master, port: int) -> None:
        """Send to another server than the options say."""
        self.master, self.port, self.ours = master, port, None

    def say(self, what: str) -> None:
        """Tell whoever waits how far the run is."""
        print(f"[{self.now - self.traffic.began:4.0f} s] {self.name}: {what}", file=sys.stderr, flush=True)

    def mark(self, what: str) -> None:
        """Remember a moment for the plot."""
        self.marks.append((self.now, what))

    def bound(self, name: str) -> float:
        """What the option `--bound-<name>` says."""
        return float(getattr(self.options, f"bound_{name.replace('-', '_')}"))

    def window(self, event: str = "", act: Callable[[], object] | None = None, seconds: float = 0) -> Window:
        """One window, `seconds` long or as the options say; at least as long as `act` takes, which begins with it."""
        begin = self.now
        if event:
            self.mark(event)
        if act:
            act()
            self.mark("")
        self._wait(begin + (seconds or self.options.window))
        self.windows.append(Window(begin, self.now, event))
        return self.windows[-1]

    def begin(self) -> None:
        """A window of the first requests that a fresh server gets, from the very first: nothing is thrown away as settling."""
        self.windows[-1] = replace(self.window(FIRST), begin=self.traffic.began)

    def rest(self, windows: float = 1) -> None:
        """Let so many times as much time pass as the options say, so that what an event costs afterwards is not in the next."""
        self._wait(self.now + windows * self.options.window)

    def _wait(self, end: float) -> None:
        """Look at the server as often as while an event goes on: who looks must not be a neighbour of those windows alone."""
        while (left := end - self.now) > 0:
            time.sleep(min(PAUSE, left))
            if left > PAUSE:
                self.master.workers()

    def pairs(self, event: str, act: Callable[[], object], back: Callable[[], object] = lambda: None) -> None:
        """As many windows with `act` as the options say, each followed by `back` and by one of equal length without."""
        for turn in range(self.options.windows):
            self.say(f"{event}, window {turn + 1} of {self.options.windows}")
            changed = self.window(event, act)
            back()
            self.window(seconds=changed.end - changed.begin)

    def of(self, event: str) -> list[Window]:
        """The windows with `event`, or those without any for an empty one."""
        return [each for each in self.windows if each.event == event]

    def values(self, event: str, share: float) -> list[float]:
        """A percentile in ms of each window with `event`, or without any for an empty one."""
        return [percentile_ms(each.of(self.traffic.answers), share) for each in self.of(event)]

    def compare(self, name: str, event: str, share: float, bound: float | None) -> Figure:
        """A percentile in windows with `event` by the one without."""
        return compare(name, self.values(event, share), self.values("", share), bound)

    def first(self, bound: float) -> Figure:
        """The slowest of the first requests of all, by the slowest of as many at the beginning of windows without an event."""
        (first,), others = ([slowest_ms(each.of(self.traffic.answers), FEW) for each in self.of(event)] for event in (FIRST, ""))
        return stands_out(f"slowest of the first {FEW} requests ÷ without", first, others, bound)

    def failed(self) -> Figure:
        """All that failed in the whole run, between windows too."""
        return Figure("requests that failed", sum(bool(each.error) for each in self.traffic.answers), bound=0)

    def report(self, figures: Sequence[Figure]) -> Report:
        """The figures, and what every workload counts."""
        answers, reopened = self.traffic.answers, self.traffic.reopened
        late = sorted(each.late for each in answers)
        common = [
            Figure("requests", len(answers)),
            Figure("connections opened anew as the server asked", reopened.asked + reopened.found),
            Figure("requests sent again since the server's close crossed them", reopened.crossed),
            Figure("sent late by the load generator, p99", late[len(late) * 99 // 100] * 1e3 if late else 0, "ms"),
        ]
        if self.ours:
            others = sum(count for status, count in self.probes.items() if status != 200)  # noqa: PLR2004 - HTTP's own number
            common.append(Figure("probes of /readyz", self.probes.total(), least=1))
            common.append(Figure("probes of /readyz that were not 200 in a second", others, bound=0))
        series = {
            event or "without": {f"p{share * 100:g}": self.values(event, share) for share in (0.5, 0.95, 0.99, 1)}
            for event in dict.fromkeys(each.event for each in self.windows)
        }
        details = {
            "rate": self.traffic.rate,
            "milliseconds by window": series,
            "window seconds": self.options.window,
            "errors": Counter(each.error for each in answers if each.error).most_common(10),
            **self.details,
        }
        return Report([*figures, *common], "what windows without the event show", details)
