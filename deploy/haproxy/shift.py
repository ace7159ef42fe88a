"""The shift from the server that serves to the one that comes after it, and the way back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.haproxy import management
from deploy.haproxy.bounds import Bounds, Counted
from deploy.haproxy.process import Started
from deploy.haproxy.runtime_api import Place, RuntimeApi, RuntimeApiError

TURN = 0.2
"""Seconds between two looks at what is waited for or watched."""
UNHEARD = 10.0
"""Seconds for which HAProxy, or the new server's metrics, may not be heard."""
FULL, LEAST = 255, 1
"""Weights. A server that waits keeps the least one, so that HAProxy turns to it by itself, at once, where the other is down or
refuses a connection."""


class ShiftError(Exception):
    """Why the new server does not serve."""


def say(line: str) -> None:
    """Tell the operator how far it is."""
    sys.stdout.write(f"blue_green: {line}\n")
    sys.stdout.flush()


@dataclass
class Shift:
    """From `old` to `new`. `pause` sleeps, and raises `ShiftError` if somebody asks to stop; `started` runs the new server."""

    api: RuntimeApi
    old: Place
    new: Place
    pause: Callable[[float], None]
    started: Started | None = None
    begun: bool = False
    """Whether weights have been touched."""
    before: Counted = field(init=False)
    """What the new server had counted when its first request could come."""

    def measure(self, seconds: float, requests: int) -> float:
        """p95 of the old server over `seconds`. Raises `ShiftError` if it answered fewer than `requests`."""
        first = self._durations(self.old)
        self.pause(seconds)
        came = self._durations(self.old) - first
        if came.total < max(requests, 1):
            message = (
                f"{self.old.name} answered {came.total:g} requests in {seconds:g} s, at least {max(requests, 1)} are needed "
            )
            raise ShiftError(message + f"to compare {self.new.name} with: give an absolute bound, or more time")
        return came.quantile(0.95)

    def prove(self, seconds: float) -> None:
        """Wait until the new server says that it is ready: every shape warm, answers checked, the synthetic load served."""
        end = time.monotonic() + seconds
        while why := management.reasons(self.new.management):
            self._alive()
            if time.monotonic() > end:
                message = f"{self.new.name} was not ready after {seconds:g} s: {why}"
                raise ShiftError(message)
            self.pause(TURN)

    def open(self) -> None:
        """Give the new server the least weight, and wait until HAProxy's own checks have found it ready."""
        self.before = self._counted()
        self.begun = True
        self.api.set({self.old.name: f"weight {FULL}", self.new.name: f"weight {LEAST}"})
        self.api.set({self.new.name: "state ready"})
        end = time.monotonic() + UNHEARD
        while (seen := self.api.traffic(self.new.name)).status != "UP":
            self._alive()
            if time.monotonic() > end:
                message = f"{self.new.name} is {seen.status} for HAProxy after {UNHEARD:g} s: {seen.check}"
                raise ShiftError(message)
            self.pause(TURN)

    def give(self, percent: float) -> None:
        """Send the new server `percent` of the requests."""
        weight = min(max(round(FULL * percent / 100), LEAST), FULL)
        self.api.set({self.new.name: f"weight {weight}", self.old.name: f"weight {max(FULL - weight, LEAST)}"})

    def watch(self, seconds: float, bounds: Bounds) -> Counted:
        """Look at the new server for `seconds`; give what it did in them. Raises `ShiftError` if a bound breaks.

        It has to keep them over that time and over all since it was opened: what goes wrong late is not made little by what went
        well before, and few failures of each step are many in the end.
        """
        end = time.monotonic() + seconds
        self._look()
        begun = self._counted()
        while True:
            self.pause(TURN)
            self._look()
            now = self._counted()
            for since in (self.before, begun):
                self._judge(now, since, bounds)
            if time.monotonic() > end:
                return now - begun

    def back(self, seconds: float) -> str:
        """The old server serves at once, the new one is ended in `seconds`; give who serves now, in words.

        Where the old one is down, or HAProxy is not heard, nobody is ended.
        """
        try:
            if self.begun and not self._restore():
                return f"{self.old.name} is down: {self.new.name} is left until that is back"
        except RuntimeApiError as error:
            return f"{error}; both servers are left as they are"
        if self.started:
            self.started.stop(seconds)
        try:
            serves = self.begun or self._up(self.old)
        except RuntimeApiError as error:
            return f"{self.old.name} was left as it is: {error}"
        return f"{self.old.name} {'serves' if serves else 'is down'}"

    def _up(self, place: Place) -> bool:
        """Whether HAProxy finds a server well, also one to which it sends no requests."""
        return self.api.traffic(place.name).status.startswith(("UP", "DRAIN"))

    def _restore(self) -> bool:
        """Whether the old server takes all requests again; it will where it is down, once it is back."""
        end = time.monotonic() + UNHEARD
        while True:
            try:
                up = self._up(self.old)
                self.api.set({self.old.name: "state ready"})  # `state drain` may have been obeyed, and its answer lost
                # A server that is down has no share, whatever its weight: the new one has all until the old one is back.
                self.api.set({self.old.name: f"weight {FULL}", self.new.name: "state maint" if up else f"weight {LEAST}"})
            except RuntimeApiError:
                if time.monotonic() > end:
                    raise
                time.sleep(TURN)
            else:
                return up

    def _look(self) -> None:
        """Raise `ShiftError` unless the new server is up."""
        self._alive()
        traffic = self.api.traffic(self.new.name)
        if not traffic.status.startswith("UP"):
            why = management.reasons(self.new.management) or "ready again"
            message = f"{self.new.name} is {traffic.status} for HAProxy: {traffic.check}; {why}"
            raise ShiftError(message)

    def _counted(self) -> Counted:
        durations, traffic = self._durations(self.new), self.api.traffic(self.new.name)
        return Counted(durations, traffic.answered, traffic.failed)

    def _judge(self, now: Counted, since: Counted, bounds: Bounds) -> None:
        try:
            broken = bounds.broken(now - since)
        except ValueError as error:
            broken = str(error)
        if broken:
            message = f"{self.new.name}: {broken}"
            raise ShiftError(message)

    def _durations(self, place: Place) -> management.Durations:
        end = time.monotonic() + UNHEARD
        while (found := management.durations(place.management)) is None:
            self._alive()  # whoever has ended says nothing more
            if time.monotonic() > end:
                message = f"{place.name} gave no metrics at {place.management} for {UNHEARD:g} s"
                raise ShiftError(message)
            self.pause(TURN)
        return found

    def _alive(self) -> None:
        if self.started and (ended := self.started.ended):
            message = f"{self.new.name} {ended}"
            raise ShiftError(message)
