"""A throw-away child: what a process must not do before it knows that it survives it, another does first.

The child says what it is at and what it found through a pipe, a JSON text a line. Its end is the end of the pipe, so that nobody
depends on who reaps it. A child that is silent for too long shows its stacks in the log and is killed.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from setproctitle import setproctitle

from server.exits import ExitError, ModelError, ResourceError, UnshareableError, by_status
from server.models.finding import Finding
from server.processes import fork_child

STACKS_SECONDS = 2.0
"""How long a child that is too slow has for showing its stacks."""


class Doing(msgspec.Struct, tag="doing", frozen=True):
    """The step at hand."""

    what: str


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Why the work can't be done."""

    status: int
    line: str
    unshareable: bool = False


class Done(msgspec.Struct, tag="done", frozen=True):
    """The work was done and the child survived it."""


Message = Doing | Finding | Failed | Done
Say = Callable[[Message], None]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


class ThrowAwayChild:
    """Forks at once; `step` until it is over, then ask for the `verdict`."""

    def __init__(self, name: str, work: Callable[[Say], None], patience: float, relay: Say | None = None) -> None:
        """Run `work` in a child that may be silent for `patience` seconds. `relay` gets what it says it is doing."""
        self.name = name
        self.patience = patience
        self.relay = relay
        self.findings: list[Finding] = []
        self.doing = "starting"
        self.failed: Failed | None = None
        self.done = False
        self.deadline = time.monotonic() + patience
        self.buffer = b""
        self.pipe, write = os.pipe()
        self.pid = fork_child(lambda: _child(write, work))
        os.close(write)

    def step(self, timeout: float) -> bool:
        """Wait for up to `timeout` seconds for word from the child; True once it is over."""
        left = self.deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        if poll.poll(max(min(timeout, left), 0) * 1000):
            return not self._read()
        if time.monotonic() >= self.deadline:
            self._kill()
            return True
        return False

    def run(self) -> list[Finding]:
        """Wait until it is over; give what it found or raise why it failed."""
        while not self.step(self.patience):
            pass
        return self.verdict()

    def verdict(self) -> list[Finding]:
        """What it found. Raises `ExitError` with the one line that says why it failed; call after it is over."""
        error = self._error()
        self.close()
        if error:
            raise error
        return self.findings

    def close(self) -> None:
        """End the child if it still runs, and leave nothing of it."""
        if self.pipe < 0:
            return
        os.close(self.pipe)
        self.pipe = -1
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody who waits for any child was quicker
            os.waitpid(self.pid, 0)

    def _read(self) -> bool:
        data = os.read(self.pipe, 1 << 16)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.deadline = time.monotonic() + self.patience
            self._take(_decoder.decode(line))
        return bool(data)

    def _take(self, message: Message) -> None:
        match message:
            case Doing():
                self.doing = message.what
                if self.relay:
                    self.relay(message)
            case Finding():
                self.findings.append(message)
            case Failed():
                self.failed = message
            case Done():
                self.done = True

    def _kill(self) -> None:
        """Have the child show the stacks of its threads, then end it."""
        line = f"{self.name}: hung for more than {self.patience:g} s at {self.doing}"
        self.failed = Failed(ModelError.status, line, unshareable=True)
        os.kill(self.pid, signal.SIGABRT)
        poll = select.poll()
        poll.register(self.pipe, select.POLLIN)
        if poll.poll(STACKS_SECONDS * 1000):
            self._read()

    def _error(self) -> ExitError | None:
        if self.failed:
            line = self.failed.line or f"{self.name}: memory ran out at {self.doing}"
            return UnshareableError(line) if self.failed.unshareable else by_status(self.failed.status, line)
        if self.done:
            return None
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return UnshareableError(f"{self.name}: the child ended at {self.doing}")
        if os.WIFSIGNALED(status):
            number = signal.Signals(os.WTERMSIG(status))
            kind = ResourceError if number is signal.SIGKILL else UnshareableError
            return kind(f"{self.name}: the child was killed by {number.name} at {self.doing}")
        return UnshareableError(f"{self.name}: the child ended itself with status {os.WEXITSTATUS(status)} at {self.doing}")


def _child(write: int, work: Callable[[Say], None]) -> int:
    setproctitle("warmfork: trial")
    faulthandler.enable(all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(message: Message) -> None:
        os.write(write, _encoder.encode(message) + b"\n")

    try:
        work(say)
    except MemoryError:
        say(Failed(ResourceError.status, ""))
    except ExitError as error:
        say(Failed(error.status, str(error), isinstance(error, UnshareableError)))
    else:
        say(Done())
    return 0
