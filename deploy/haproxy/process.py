"""The processes of a server: the one that was started here, and the master of one that somebody else started."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from deploy.haproxy import management
from deploy.haproxy.runtime_api import Place


class Started:
    """A server that was started here, as a child. It outlives this process, and a Ctrl-C at the terminal is not meant for it."""

    def __init__(self, command: list[str], place: Place) -> None:
        """Run `command`, which must stay in the foreground, and tell it where to bind. Raises `OSError` if it cannot be run."""
        where = {"WARMFORK_BIND": place.bind, "WARMFORK_MANAGEMENT_BIND": place.management}
        self._process = subprocess.Popen(  # noqa: S603 - the operator's own command
            command, env={**os.environ, **where}, stdin=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def ended(self) -> str:
        """How it ended, or nothing."""
        status = self._process.poll()
        if status is None:
            return ""
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    def stop(self, seconds: float) -> None:
        """Send TERM, on which it answers what it has accepted; after `seconds` KILL."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Master:
    """The master of a server that somebody else started on this machine: the parent of its workers."""

    def __init__(self, descriptor: int) -> None:
        """Hold a pidfd, so that nobody else can be meant who is given the same pid later."""
        self._descriptor = descriptor

    @classmethod
    def of(cls, place: Place) -> Self | None:
        """The master of the server at `place`, or None if it is not to be seen from here."""
        for pid in management.workers(place.management):
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                descriptor = os.pidfd_open(parent)
                if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"warmfork: master"):
                    return cls(descriptor)
                os.close(descriptor)
            except OSError:
                continue
        return None

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, now or within `seconds`."""
        return bool(select.select([self._descriptor], [], [], seconds)[0])

    def stop(self, seconds: float) -> bool:
        """Send TERM; whether it has ended after `seconds`. Raises `PermissionError` if it belongs to somebody else."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)
        return self.ended(seconds)
