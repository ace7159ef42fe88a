"""A throw-away child: what a process must not do before it knows that it survives it, another does first.

Its end is seen by the end of its pipe and by its pidfd, so that nobody depends on who reaps it. A child that is silent for too
long shows its stacks in the log and is killed.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from setproctitle import setproctitle

from server.exits import ExitError, ModelError, ResourceError, UnshareableError, by_status
from server.models.finding import Finding, Taken
from server.processes import expendable, fork_child
from server.warmup.messages import Doing, Done, Failed, Message, Say, decode, encode
from server.warmup.polite import process_stands_back, stands_back

END_SECONDS = 2.0
"""How long a child has for showing its stacks, or for ending after its last word."""

_log = logging.getLogger("gunicorn.error")


class ThrowAwayChild:
    """Forks at once; `step` until it is over, then ask for the `verdict`."""

    def __init__(
        self, name: str, work: Callable[[Say], None], patience: float, relay: Say | None = None, *, breaks: bool = True
    ) -> None:
        """Run `work` in a child that may be silent for `patience` seconds. `relay` gets what it says it is doing.

        `breaks`: whether its native code may be interrupted, where it stands back.
        """
        self.name = name
        self.patience = patience
        self.relay = relay
        self.leads = False
        """Whether it leads a process group, which ends with it."""
        self.findings: list[Finding] = []
        self.taken: Taken | None = None
        self.doing = "starting"
        self.failed: Failed | None = None
        self.done = False
        self.seen: int | None = None
        """How it ended, as `os.waitpid` says it, where `look` saw it."""
        self.deadline = time.monotonic() + patience
        self.buffer = b""
        self.pid = 0
        self.pipe, write = os.pipe()
        try:
            self.pid = fork_child(lambda: _child(write, work, breaks=breaks))
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            os.close(self.pipe)
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            os.close(write)

    def step(self, timeout: float) -> bool:
        """Wait for up to `timeout` seconds for word from the child; True once it is over."""
        left = max(self.deadline - time.monotonic(), 0)
        if _readable(self.pipe, min(timeout, left)):
            return not self._read() or self.done
        if time.monotonic() < self.deadline:
            return False
        line = f"{self.name}: hung for more than {self.patience:g} s at {self.doing}"
        self.failed = Failed(ModelError.status, line, unshareable=True)
        self._send(signal.SIGABRT)  # shows the stacks of all threads
        _readable(self.pidfd, END_SECONDS)
        return True

    def run(self) -> list[Finding]:
        """Wait until it is over; give what it found or raise why it failed."""
        while not self.step(self.patience):
            pass
        return self.verdict()

    def verdict(self) -> list[Finding]:
        """What it found. Raises `ExitError` with the one line that says why it failed; call after it is over."""
        ended = _readable(self.pidfd, END_SECONDS)
        how = self._end() if ended else None
        self.close()
        if self.failed:
            line = self.failed.line or f"{self.name}: memory ran out at {self.doing}"
            raise UnshareableError(line) if self.failed.unshareable else by_status(self.failed.status, line)
        if not self.done:
            raise self._silent_end(how)
        return self.findings

    def close(self) -> None:
        """End the child if it still runs, and leave nothing of it."""
        self._end()

    def look(self) -> None:
        """Note how the child has ended, if it has, before somebody who waits for any child takes its status."""
        with suppress(ChildProcessError):
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info:
                self.seen = info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status

    def forget(self) -> None:
        """In a process that inherited this child's descriptors: let go of them."""
        os.close(self.pipe)
        os.close(self.pidfd)

    def _end(self) -> int | None:
        """End the child; how it ended as `os.waitpid` says it, None where somebody who waits for any child was quicker."""
        if self.pipe < 0:
            return None
        self._send(signal.SIGKILL)
        if self.leads:
            with suppress(ProcessLookupError):  # nobody is left in it
                os.killpg(self.pid, signal.SIGKILL)
        self.forget()
        self.pipe = -1
        with suppress(ChildProcessError):
            return os.waitpid(self.pid, 0)[1]
        return self.seen

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def _read(self) -> bool:
        data = os.read(self.pipe, 1 << 16)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            self.deadline = time.monotonic() + self.patience
            self._take(decode(line))
        return bool(data)

    def _take(self, message: Message) -> None:
        match message:
            case Doing():
                self.doing = message.what
                if self.relay:
                    self.relay(message)
            case Finding():
                self.findings.append(message)
            case Taken():
                self.taken = message
            case Failed():
                self.failed = message
            case Done():
                self.done = True

    def _silent_end(self, how: int | None) -> ExitError:
        if how is None:
            return UnshareableError(f"{self.name}: the child ended at {self.doing}")
        if not os.WIFSIGNALED(how):
            return UnshareableError(f"{self.name}: the child ended itself with status {os.WEXITSTATUS(how)} at {self.doing}")
        number = signal.Signals(os.WTERMSIG(how))
        kind = ResourceError if number is signal.SIGKILL else UnshareableError
        return kind(f"{self.name}: the child was killed by {number.name} at {self.doing}")


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _child(write: int, work: Callable[[Say], None], *, breaks: bool) -> int:
    setproctitle("warmfork: trial")
    faulthandler.enable(all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expendable(yes=True)
    if stands_back():  # as who has forked it, whose breaks it does not have
        process_stands_back(breaks=breaks)

    def say(message: Message) -> None:
        os.write(write, encode(message))

    try:
        work(say)
    except MemoryError:
        say(Failed(ResourceError.status, ""))
    except ExitError as error:
        say(Failed(error.status, str(error), isinstance(error, UnshareableError)))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        _log.exception("trial failed")
        say(Failed(ModelError.status, f"trial: {type(error).__name__}: {' '.join(str(error).split())}"))
    else:
        say(Done())
    return 0
