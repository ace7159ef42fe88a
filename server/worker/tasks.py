"""Greenlets that are used again: one per request that is being answered."""

from __future__ import annotations

from collections.abc import Callable

from greenlet import getcurrent, greenlet

Work = Callable[[], None]


class Tasks:
    """Runs work in greenlets, which switch back to the one that made this object whenever they have to wait.

    PERF: CPython 3.11 maps a stack chunk of 16 KB for each new greenlet, so those that are done are kept.
    """

    def __init__(self) -> None:
        """Begin with none. The greenlet that is current here is the one that all others come back to."""
        self.hub = getcurrent()
        self.idle: list[greenlet] = []
        self.count = 0
        """How many there are, idle ones included: as many as have ever been at work at once."""

    def start(self, work: Work) -> None:
        """Run `work` until it is done or parks for the first time. It must not raise."""
        if self.idle:
            task = self.idle.pop()
        else:
            task = greenlet(self._serve, self.hub)
            task.switch()
            self.count += 1
        task.switch(work)

    def park(self) -> None:
        """Wait, in the greenlet of some work, until somebody switches to it."""
        self.hub.switch()

    def _serve(self) -> None:
        me = getcurrent()
        while True:
            # Neither a name here nor the greenlet's arguments hold work that is done: its body, its answer.
            self.hub.switch()()
            self.idle.append(me)
