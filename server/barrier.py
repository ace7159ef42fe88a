"""Where the workers of a generation wait for each other. The page says what is open; an eventfd per slot only wakes.

Nothing is held while waiting, so a worker that dies there blocks nobody.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum


class Point(IntEnum):
    """The points that a worker passes, in order; the number is what it writes into its slot when it gets there."""

    PROVEN = 1
    """Its shapes are warm and its answers right. Where nobody serves all go on together, to the synthetic load."""
    REHEARSED = 2
    """The synthetic load went well. All open together."""


class Barrier:
    """The eventfds, each made by the master before the fork of its worker, and inherited by it."""

    def __init__(self) -> None:
        """Begin with none."""
        self.bells: dict[int, int] = {}

    def add(self, slot: int) -> None:
        """Make the eventfd of a worker that is about to be forked."""
        self.bells[slot] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def drop(self, slot: int) -> None:
        """Close the eventfd of a worker that has ended."""
        os.close(self.bells.pop(slot))

    def wake(self, slot: int) -> None:
        """Have the worker in `slot` look at the page again."""
        os.eventfd_write(self.bells[slot], 1)

    def wait(self, slot: int, condition: Callable[[], bool]) -> None:
        """Wait in the worker until `condition`, which reads the page, holds."""
        bell = self.bells[slot]
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        while not condition():
            poll.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(bell)
