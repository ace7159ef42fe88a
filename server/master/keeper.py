"""Keeps the management process: binds its socket once, starts it, starts it anew when it ends."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.exits import ConfigurationError
from server.master.predecessor import Predecessor
from server.processes import signals_held
from server.scoreboard import Scoreboard
from server.states import Phase

QUICK_SECONDS = 1.0
"""A process that lived shorter than this is not started anew before as much time has passed."""

_log = logging.getLogger("gunicorn.error")


class Keeper:
    """The management process and its socket. The socket is the master's, so it has no gap and no rival."""

    def __init__(self, sock: socket.socket, board: Scoreboard, predecessor: Predecessor | None = None) -> None:
        """Let nobody answer on `sock` yet. Where there is a predecessor, it will be told when somebody does."""
        self.board = board
        self.socket = sock
        self.predecessor = predecessor
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.started = 0.0
        self.ends = 0
        """How often the process has ended."""

    def start(self) -> None:
        """Start the process by fork and exec: it has no model, no engine, no weights."""
        descriptors = [self.board.fd, self.socket.fileno()]
        tell = []
        if self.predecessor:
            descriptors.append(self.predecessor.pipe)
            tell = [f"--tell={self.predecessor.pipe}"]
        with signals_held():  # until it ignores them: whoever sends to the group does not mean a process that has just begun
            self.process = self._popen(descriptors, tell)
            self.pidfd = os.pidfd_open(self.process.pid)
        self.started = time.monotonic()

    @staticmethod
    def _popen(descriptors: Sequence[int], tell: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - every word of it is ours
            [
                sys.executable,
                "-m",
                "server.management",
                f"--board={descriptors[0]}",
                f"--socket={descriptors[1]}",
                f"--master={os.getpid()}",
                *tell,
            ],
            cwd=Path(__file__).parents[2],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid if self.process else 0

    def ended(self) -> bool:
        """Whether there is no process. Asked of its pidfd, since somebody who waits for any child may have its status."""
        if not self.process:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def keep(self) -> None:
        """Start the process if there is none, at most once a second; not where another master's answers by now."""
        over = self.board.phase is Phase.HANDED_OVER
        if over or not self.ended() or time.monotonic() < self.started + QUICK_SECONDS:
            return
        before, old = self.process, self.pidfd
        if before is None and self.predecessor is None:  # a start ends where it fails
            self.start()
            return
        self.started = time.monotonic()
        if before:
            before.poll()
            self.ends += 1
        try:
            self.start()
        except OSError as error:
            self.ends += before is None
            _log.error("The management process cannot be started, trying again: %s", error)
            return
        if before:
            os.close(old)
            _log.warning("The management process ended; a new one was started")

    def stop(self) -> None:
        """End the process for good."""
        if self.process:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        self.socket.close()


def bound(address: str, setting: str) -> socket.socket:
    """A bound socket that does not listen yet, so that a probe is refused rather than kept waiting until somebody answers."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(target)
    except OSError as error:
        if made:
            made.close()
        message = f"{setting}={address}: {error.strerror or error}"
        raise ConfigurationError(message) from None
    return made
