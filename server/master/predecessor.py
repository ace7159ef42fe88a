"""In a new master: the one that started it, whom it tells how it goes."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Self

from server.exits import one_line
from server.processes import unread

INHERITED = "_WARMFORK_INHERITED"
"""What the new master finds in its environment: descriptors of the management socket and of the pipe, how many workers
take traffic, whether TTIN or TTOU has said so, and whether systemd has bound the other sockets."""


class Predecessor:
    """In a new master: the one that started it."""

    def __init__(self, management: int, pipe: int, active: int, scaled: int, systemd: int) -> None:
        """It is our parent as long as it lives."""
        self.pid = os.getppid()
        self.socket = socket.socket(fileno=management)
        self.pipe = pipe
        self.active = active
        self.scaled = bool(scaled)
        self.systemd = bool(systemd)
        for descriptor in (management, pipe):
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library's signature
        os.set_blocking(pipe, False)

    @classmethod
    def find(cls, environ: MutableMapping[str, str]) -> Self | None:
        """The one that `environ` tells of, if any."""
        inherited = environ.pop(INHERITED, "")
        return cls(*map(int, inherited.split(","))) if inherited else None

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return os.getppid() != self.pid

    @property
    def leaving(self) -> bool:
        """Whether it serves no more: it has let go of the pipe, and only finishes what it had accepted."""
        return unread(self.pipe)

    def say(self, word: str, rest: str = "") -> None:
        """Tell it one line; nobody waits for it to listen."""
        with suppress(OSError):
            os.write(self.pipe, f"{word} {one_line(rest)}\n".encode())
