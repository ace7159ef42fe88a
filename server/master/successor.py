"""In an old master: the new one, if one was started, and what it says."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

from server.master.predecessor import INHERITED
from server.master.words import Words
from server.settings import Settings

SILENCE = 4
"""Boot deadlines that a new master may be silent for: a trial, a load, a second trial and the boot of its workers."""
GRACE_SECONDS = 10.0
"""What such a one has to end in, besides a graceful stop."""

_log = logging.getLogger("gunicorn.error")


class Successor:
    """In the old master: the new one, if one was started."""

    def __init__(self, settings: Settings, words: Words) -> None:
        """Begin with none."""
        self.patience = SILENCE * settings.boot_timeout
        self.grace = settings.stop_seconds + GRACE_SECONDS
        self.words = words
        self.pid = 0
        self.pipe = self.theirs = -1
        self.buffer = b""
        self.deadline = 0.0
        self.silent = False
        """Whether it was told to end, since it said nothing for too long."""
        self.warm = False
        """Whether it serves."""
        self.missed: list[signal.Signals] = []
        """What was asked of the old master since this one began, which read its settings and the repository before."""
        self.owes_reload = False
        """Whether a reload was left to it."""
        self.ending = False
        """Whether it was told to end, since the server as a whole goes."""
        self.failed = ""

    def prepare(self) -> None:
        """Before the fork: make the pipe."""
        self.pipe, self.theirs = os.pipe()
        os.set_blocking(self.pipe, False)

    def abandon(self) -> None:
        """It could not be started."""
        for descriptor in (self.pipe, self.theirs):
            if descriptor >= 0:
                os.close(descriptor)
        self.pipe = self.theirs = -1

    def bequeath(self, environ: MutableMapping[str, str], management: socket.socket, *facts: int) -> None:
        """In the child, before it becomes the new master: leave it what is to be inherited, in the order of `Predecessor`."""
        for descriptor in (management.fileno(), self.theirs):
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - the standard library's signature
        environ[INHERITED] = ",".join(str(int(each)) for each in (management.fileno(), self.theirs, *facts))

    def began(self, pid: int) -> None:
        """It was forked as `pid`."""
        os.close(self.theirs)
        self.theirs = -1
        self.pid, self.failed, self.buffer = pid, "", b""
        self.warm = self.silent = self.ending = self.owes_reload = False
        self.missed.clear()
        self.deadline = time.monotonic() + self.patience
        self.words.hand_over_refused = ""
        self._doing("starts")

    def listen(self) -> None:
        """Hear what it has to say; end it if it has been silent for too long."""
        if not self.pid:
            return
        with suppress(BlockingIOError):
            while data := os.read(self.pipe, 1 << 16):
                *lines, self.buffer = (self.buffer + data).split(b"\n")
                self.deadline = time.monotonic() + self.patience
                for line in lines:
                    self._hear(*line.decode(errors="replace").partition(" ")[::2])
        if not self.warm and time.monotonic() > self.deadline:
            self.failed = self.failed or f"silent for more than {self.patience:g} s ({SILENCE} × WARMFORK_BOOT_TIMEOUT)"
            self._send(signal.SIGKILL if self.silent else signal.SIGTERM)  # it may serve, and not say so
            self.silent = True
            self.deadline = time.monotonic() + self.grace

    def let_go(self) -> None:
        """Close the pipe, and know of no new master. If it lives, it serves alone from now on: this one does not take over again.

        A worker has inherited the pipe, and lets go of it as well.
        """
        if self.pid:
            os.close(self.pipe)
        self.pid, self.pipe, self.warm = 0, -1, False

    def ended(self, how: signal.Signals | int | None) -> None:
        """It has ended: the old master stays."""
        self.listen()
        self.let_go()
        if self.ending:
            return
        end = f"was killed by {how.name}" if isinstance(how, signal.Signals) else f"ended with status {how}"
        line = f"USR2 was refused: the new master {end}" + (f": {self.failed}" if self.failed else "")
        _log.error("%s", line)
        self.words.hand_over_refused = line
        self.words.say("")

    def miss(self, number: signal.Signals) -> None:
        """A signal that came to the old master, and that the new one will have to obey."""
        if self.pid and (number is not signal.SIGHUP or number not in self.missed):
            self.missed.append(number)

    def take_reload(self) -> bool:
        """Leave a reload to it; whether there is one."""
        self.owes_reload = bool(self.pid)
        self.miss(signal.SIGHUP)
        return self.owes_reload

    def catch_up(self) -> None:
        """Once it serves: pass on one signal that it has missed. Of two alike that come at once it would see one."""
        if self.missed:
            self._send(self.missed.pop(0))

    def end(self) -> None:
        """End it: the server as a whole goes. Once is enough: a second time would hurry it."""
        if self.pid and not self.ending:
            self.ending = True
            self._send(signal.SIGTERM)

    def _hear(self, word: str, rest: str) -> None:
        match word:
            case "doing":
                self._doing(rest)
            case "failed":
                self.failed = self.failed or rest
                self.warm = False
            case "warm" if not self.failed:
                self.warm = True
                self.words.say("")

    def _doing(self, what: str) -> None:
        self.words.say(f"new master {self.pid}: {what}")

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
