"""When the management process of a new master answers: once the old master has been told that it may go, or has ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from server.management.view import View
from server.processes import unread

BAKED_SECONDS = 1.0
"""How long a new server must have been ready before the old one is told."""


class Heir:
    """A new master's process tells the old master when that may go."""

    def __init__(self, view: View, pipe: int) -> None:
        """Tell it through `pipe`."""
        self.view = view
        self.pipe = pipe
        self.since = time.monotonic()

    def takes_over(self) -> bool:
        """Whether the old one has been told, which is as soon as the new server has been ready for a while, or has ended.

        What fails at its first requests fails before that, and no probe hears of it.
        """
        now = time.monotonic()
        if not self.view.ready().ready:
            self.since = now
        if self.pipe >= 0 and (now - self.since >= BAKED_SECONDS or unread(self.pipe)):
            with suppress(BrokenPipeError):  # it has ended
                try:
                    os.write(self.pipe, b"warm\n")
                except BlockingIOError:  # it has not read for long
                    return False
            os.close(self.pipe)
            self.pipe = -1
        return self.pipe < 0
