"""Keeps the management process: binds its socket once, starts it, starts it anew when it ends."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from server.exits import ConfigurationError
from server.scoreboard import Scoreboard

QUICK_SECONDS = 1.0
"""A process that lived shorter than this is not started anew before as much time has passed."""

_log = logging.getLogger("gunicorn.error")


class Keeper:
    """The management process and its socket. The socket is the master's, so it has no gap and no rival."""

    def __init__(self, bind: str, board: Scoreboard) -> None:
        """Bind `bind` (host:port); raises `ConfigurationError` naming it where that fails."""
        self.board = board
        self.socket = bound(bind, "WARMFORK_MANAGEMENT_BIND")
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.started = 0.0

    def start(self) -> None:
        """Start the process by fork and exec: it has no model, no engine, no weights."""
        descriptors = (self.board.fd, self.socket.fileno())
        self.process = subprocess.Popen(  # noqa: S603 - every word of it is ours
            [
                sys.executable,
                "-m",
                "server.management",
                f"--board={descriptors[0]}",
                f"--socket={descriptors[1]}",
                f"--master={os.getpid()}",
            ],
            cwd=Path(__file__).parents[2],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid if self.process else 0

    def ended(self) -> bool:
        """Whether the process has ended. Asked of its pidfd, since somebody who waits for any child may have its status."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def keep(self) -> None:
        """Start the process anew if it has ended, at most once a second."""
        if not self.ended() or time.monotonic() < self.started + QUICK_SECONDS:
            return
        self.started = time.monotonic()
        old = self.pidfd
        if self.process:
            self.process.poll()
        try:
            self.start()
        except OSError as error:
            _log.error("The management process ended; a new one cannot be started, trying again: %s", error)
            return
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
