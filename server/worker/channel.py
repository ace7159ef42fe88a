"""One socket: what is sent over it goes as far as it goes, what has to wait for the client parks, and its end is told."""

from __future__ import annotations

import select
import socket
from abc import ABC, abstractmethod
from enum import Enum, auto

from greenlet import greenlet

from server.refusals import AbandonedError
from server.worker.common import Common
from server.worker.outgoing import Outgoing

SILENT_SECONDS = 5.0
"""How long a client may send nothing of a body, or take too little of its answer."""
LINGER_SECONDS = 2.0
"""How long a connection that we close is read, so that a client that is still sending reads its answer first."""
UNSENT = 1 << 18
"""Bytes of an answer that wait for the client before the app is asked for more of it."""
TAKEN = 1 << 16
"""Bytes of an answer that a client must take in `SILENT_SECONDS`: it is held for all others meanwhile."""
FOREVER = float("inf")


class State(Enum):
    """What a connection waits for."""

    HEAD = auto()
    """A request, or the rest of its head."""
    BODY = auto()
    """The rest of a plain body."""
    BUSY = auto()
    """An answer."""
    LINGER = auto()
    """The client's end: all is said."""
    CLOSED = auto()


class Channel(ABC):
    """The way to one client and back; what is said over it is a `Connection`'s."""

    __slots__ = (
        "deadline",
        "done",
        "ended",
        "events",
        "front",
        "out",
        "parked",
        "reserved",
        "sock",
        "speaking",
        "state",
        "taken",
        "task",
    )

    def __init__(self, front: Common, sock: socket.socket, seconds: float) -> None:
        """Watch `sock`, which does not block; something must come within `seconds`."""
        self.front = front
        self.sock = sock
        self.state = State.HEAD
        self.reserved = 0
        """Bytes of bodies and answers that this connection holds."""
        self.task: greenlet | None = None
        """Who answers the request at hand."""
        self.parked = ""
        """What it waits for here: to `read` or to `write`."""
        self.out = Outgoing(sock)
        self.taken = 0
        """Bytes of it that the client has taken since its deadline was set."""
        self.speaking = False
        """Whether a part of the answer has been sent, so that no other can be given."""
        self.done = False
        """Whether the answer is complete but for what is in `out`."""
        self.ended = False
        """Whether the client will send no more."""
        self.events = select.EPOLLIN
        self.deadline = front.now + seconds
        front.loop.add(sock.fileno(), self.on_event)

    @abstractmethod
    def receive(self) -> None:
        """There is something to read."""

    @abstractmethod
    def proceed(self) -> None:
        """A whole answer has been sent."""

    def on_event(self, event: int) -> None:
        """Take news of the socket."""
        if event & select.EPOLLOUT:
            self._flush()
        if event & (select.EPOLLERR | select.EPOLLHUP) and self.state is not State.CLOSED:
            self.lose()
        elif event & select.EPOLLIN and self.state is not State.CLOSED:
            self.receive()

    # --- sending -----------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send, or keep what the client does not take now."""
        if self.state is State.CLOSED:
            raise AbandonedError
        try:
            kept = self.out.send(data)
        except OSError:
            self.close()
            raise AbandonedError from None
        if kept:
            self.hold(kept)
            self._await_taking()
            self.watch(self.events | select.EPOLLOUT)

    def sendall(self, data: bytes) -> None:
        """Send a part of an answer. gunicorn's `Response`, too, calls it so."""
        self.speaking = True
        self.send(data)

    def say(self, data: bytes) -> None:
        """Send, from the loop and not from a task."""
        task = self.task
        try:
            self.send(data)
        except AbandonedError:
            if task:
                task.throw(AbandonedError())

    def _flush(self) -> None:
        try:
            went = self.out.flush()
        except OSError:
            self.lose()
            return
        self.hold(-went)
        self.taken += went
        if self.out.size:
            if self.taken >= TAKEN:
                self._await_taking()
            return
        self.watch(self.events & ~select.EPOLLOUT)
        self.deadline = FOREVER
        if self.parked == "write":
            self.resume()
        elif self.done:
            self.proceed()

    def drain(self) -> None:
        """Wait, in a task, until the client has taken what is kept, if that is much."""
        if self.out.size > UNSENT:
            self.park("write")

    def _await_taking(self) -> None:
        self.taken = 0
        self.deadline = self.front.now + SILENT_SECONDS

    # --- waiting -----------------------------------------------------------------------------------------------------

    def park(self, what: str) -> None:
        """Wait, in a task, to `read` or to `write`. Raises `AbandonedError` where the client is gone."""
        if self.state is State.CLOSED:  # nobody would ever resume it
            raise AbandonedError
        self.parked = what
        try:
            self.front.tasks.park()
        finally:
            self.parked = ""

    def resume(self) -> None:
        """Go on with the task that is parked."""
        if self.task:
            self.task.switch()

    def watch(self, events: int) -> None:
        """Be told of other events from now on."""
        if events != self.events and self.state is not State.CLOSED:
            self.events = events
            self.front.loop.modify(self.sock.fileno(), events)

    @property
    def asks(self) -> bool:
        """Whether something has come that nobody has read."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    # --- what is held ------------------------------------------------------------------------------------------------

    def hold(self, size: int) -> None:
        """Count bytes that are held for this client."""
        self.reserved += size
        self.front.held += size

    def reserve(self, size: int) -> None:
        """Hold `size` bytes for a body. Raises `BusyError` where all that is held would be too much."""
        if self.front.held + size > self.front.most_held:
            raise self.front.laden()
        self.hold(size)

    def release(self) -> None:
        """Hold no more than what has still to be sent."""
        self.hold(self.out.size - self.reserved)

    # --- ending ------------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The client is gone: drop its request, wherever that waits."""
        task, waits = self.task, self.state is State.BUSY
        self.close()
        if task and waits:
            task.throw(AbandonedError())

    def linger(self) -> None:
        """Say that nothing follows, and read until the client has understood."""
        if self.ended:
            self.close()
            return
        self.state = State.LINGER
        self.deadline = self.front.now + LINGER_SECONDS
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.watch(select.EPOLLIN)

    def close(self) -> None:
        """Close the socket and forget the rest."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.out.clear()
        self.release()
        self.front.forget(self.sock.fileno())
        self.sock.close()
