"""One connection: what came over it, the request that is being answered, what has still to be sent."""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from enum import Enum, auto
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from server.environ import HEADER_LENGTH, RECEIVED, RESERVE
from server.refusals import AbandonedError, BusyError, RefusalError, SlowError, TooLargeError, too_large
from server.worker import plain, unusual
from server.worker.content import Arriving, Content
from server.worker.error_page import refusal
from server.worker.head import END, LONG, PIECES, Head, IncompleteHeadError
from server.worker.outgoing import Outgoing

if TYPE_CHECKING:
    from server.worker.front import Front

HEAD_SECONDS = 5.0
"""From the first byte of a head to its last."""
SILENT_SECONDS = 5.0
"""How long a client may send nothing of a body, or take too little of its answer."""
LINGER_SECONDS = 2.0
"""How long a connection that we close is read, so that a client that is still sending reads its answer first."""
RECEIVE = 1 << 14
"""Bytes that are asked for at once where it is not known how many come; so many are copied of a body that comes with its head."""
AHEAD = 1 << 16
"""Bytes that are received of a client's next requests while one is being answered."""
UNSENT = 1 << 18
"""Bytes of an answer that wait for the client before the app is asked for more of it."""
TAKEN = 1 << 16
"""Bytes of an answer that a client must take in `SILENT_SECONDS`: it is held for all others meanwhile."""
FOREVER = float("inf")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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


class Connection:
    """One client. Requests are answered one after another, in the order in which they came."""

    __slots__ = (
        "ahead",
        "arriving",
        "client",
        "closes",
        "deadline",
        "done",
        "ended",
        "environ",
        "events",
        "front",
        "head",
        "interim",
        "late",
        "latest",
        "out",
        "parked",
        "received_ns",
        "reserved",
        "schemes",
        "seen",
        "server",
        "sock",
        "speaking",
        "state",
        "taken",
        "task",
    )

    def __init__(self, front: Front, sock: socket.socket, client: Any, server: Any) -> None:
        """Serve `sock`, which does not block, for `client` at the address `server`."""
        self.front = front
        self.sock = sock
        self.client = client
        self.server = server
        self.environ, self.schemes = front.heads.begin(client, server)
        self.state = State.HEAD
        self.ahead = b""
        """Received, but not yet looked at, or not yet enough."""
        self.seen = 0
        """How much of it was looked at in vain."""
        self.late = False
        """Whether it came when the server was going away already."""
        self.head: Head | None = None
        self.arriving: Arriving | None = None
        self.received_ns = 0
        self.latest = FOREVER
        """When the head or the body at hand must be there."""
        self.reserved = 0
        """Bytes of bodies and answers that this connection holds."""
        self.task: greenlet | None = None
        """Who answers the request at hand."""
        self.parked = ""
        """What it waits for here: to `read` or to `write`."""
        self.out = Outgoing(sock)
        self.taken = 0
        """Bytes of it that the client has taken since its deadline was set."""
        self.interim = False
        """Whether the client understands an interim answer: its head was read, and is of HTTP/1.1."""
        self.speaking = False
        """Whether a part of the answer has been sent, so that no other can be given."""
        self.done = False
        """Whether the answer is complete but for what is in `out`."""
        self.closes = False
        """Whether it is the last."""
        self.ended = False
        """Whether the client will send no more."""
        self.events = select.EPOLLIN
        self.deadline = front.now + max(front.keepalive, HEAD_SECONDS)
        front.loop.add(sock.fileno(), self.on_event)

    def on_event(self, event: int) -> None:
        """Take news of the socket."""
        if event & select.EPOLLOUT:
            self._flush()
        if event & (select.EPOLLERR | select.EPOLLHUP) and self.state is not State.CLOSED:
            self.lose()
        elif event & select.EPOLLIN and self.state is not State.CLOSED:
            self._receive()

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            if self.state is State.BODY and self.arriving:
                self._fill(self.arriving)
                return
            data = self.sock.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.lose()
            return
        if self.state is State.LINGER:
            if not data:
                self.close()
            return
        if data:
            self._keep(data)
        else:
            self._end()

    def _keep(self, data: bytes) -> None:
        """Take what came, for the request at hand or the next one."""
        if not self.ahead:
            self.late = self.front.refusing
        self.ahead = self.ahead + data if self.ahead else data
        if self.state is State.HEAD:
            self.advance()
        elif self.parked == "read":
            self._resume()
        elif len(self.ahead) >= AHEAD:
            self._watch(self.events & ~select.EPOLLIN)

    def _fill(self, arriving: Arriving) -> None:
        """Receive a body straight into its place."""
        while arriving.rest:
            try:
                came = self.sock.recv_into(arriving.rest)
            except (BlockingIOError, InterruptedError):
                break
            if not came:
                self._end()
                return
            arriving.came += came
            try:
                self.reserve(came)  # what was announced is address space, what came is memory
            except BusyError as error:
                self.arriving = None
                self.refuse(error)
                return
            self._expect_more()
        if not arriving.rest:
            self._begin(arriving.content())

    def _end(self) -> None:
        """The client will send no more; it may still read."""
        self.ended = True
        self._watch(self.events & ~select.EPOLLIN)
        if self.state is State.HEAD:
            self.advance()
        elif self.state is State.BODY and self.arriving:
            self._begin(self.arriving.content())  # the app says what is missing
        elif self.parked == "read":
            self._resume()
        elif self.state is State.BUSY and self.interim and not self.speaking:
            # Is it gone, or has it only said all that it had to say? Any client takes this, one that is gone answers by a reset.
            self._say(_CONTINUE)

    def advance(self) -> None:
        """Begin what came, as long as there is a whole request and none is being answered."""
        while self.state is State.HEAD and self.ahead:
            if self.seen > LONG and (len(self.ahead) - self.seen) * PIECES < self.seen and END not in self.ahead[self.seen - 3 :]:
                break
            try:
                head = self.front.heads.read(self.ahead, self.seen, self.environ, self.schemes)
            except IncompleteHeadError:
                if not self.seen:
                    self.deadline = self.front.now + HEAD_SECONDS
                self.seen = len(self.ahead)
                break
            self.seen = 0
            self.received_ns = time.monotonic_ns()
            if self.late:
                self.refuse(BusyError("the server is going away"))
            elif self.front.held > self.front.most_held:
                self.refuse(self.front.laden())
            elif head is None:
                self._start(self._answer_unusual)
            else:
                self._take(head)
        if self.state is State.HEAD and self.ended:
            self.close()

    def _take(self, head: Head) -> None:
        """Take a plain request: begin it, or wait for its body."""
        self.head = head
        head.environ[RECEIVED] = self.received_ns
        head.environ[RESERVE] = self.reserve
        if head.length > self.front.max_body:
            self.refuse(TooLargeError(too_large(f"{head.length} bytes", self.front.max_body)))
            return
        end = head.size + head.length
        data, self.ahead = self.ahead[head.size : end], self.ahead[end:]
        if len(data) == head.length:
            self._begin(Content(memoryview(data)))
            return
        text = head.environ.get(HEADER_LENGTH, "")[:9]
        try:
            self.reserve(len(data))
            self.arriving = Arriving(head.length, int(text) if text.isascii() and text.isdigit() else 0)
        except BusyError as error:
            self.refuse(error)
            return
        except MemoryError:
            self.refuse(BusyError(f"memory ran out for a body of {head.length} bytes"))
            return
        self.arriving.put(data)
        self.latest = self.front.now + self.front.patience
        self.state = State.BODY
        self._expect_more()
        if head.expects and not data:
            self._say(_CONTINUE)
        elif self.ended:
            self._begin(self.arriving.content())

    def _expect_more(self) -> None:
        self.deadline = min(self.front.now + SILENT_SECONDS, self.latest)

    def _begin(self, content: Content) -> None:
        assert self.head  # noqa: S101 - a plain request has one
        self.arriving = None
        self.head.environ["wsgi.input"] = content
        self._start(self._answer)

    def more(self) -> bytes:
        """Wait, in a task, for what the client sends next; empty at its end. Raises `SlowError` if nothing comes."""
        if not self.ahead and not self.ended:
            self._expect_more()
            self._park("read")
            self.deadline = FOREVER
        data, self.ahead = self.ahead, b""
        return data

    def hurry(self) -> None:
        """All is said: what may still come of the body must come soon."""
        self.latest = self.front.now + LINGER_SECONDS

    # --- answering ---------------------------------------------------------------------------------------------------

    def _start(self, work: Any) -> None:
        self.state = State.BUSY
        self.deadline = FOREVER
        self.done = False
        self.front.count_request()
        self.front.tasks.start(work)

    def _answer(self) -> None:
        assert self.head  # noqa: S101 - as above
        self.task, self.interim = getcurrent(), True
        plain.answer(self, self.front, self.head)

    def _answer_unusual(self) -> None:
        self.head, self.interim = None, False
        self.task = getcurrent()
        self.latest = self.front.now + HEAD_SECONDS
        unusual.answer(self, self.front)

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come."""
        return self.state is State.HEAD and not self.ahead

    @property
    def asks(self) -> bool:
        """Whether something has come that nobody has read."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def closing(self, *, wanted: bool) -> bool:
        """Whether the connection ends with the next answer: as somebody wants it, or since other workers should have it."""
        front = self.front
        if wanted or not front.keepalive or front.overdue:
            return True
        if not (front.leaving or front.surplus > 0) or self._pipelined():
            return False
        front.surplus -= 1
        return True

    def _pipelined(self) -> bool:
        """Whether the client has sent more already: it will be answered too."""
        if not self.ahead and not self.ended:
            with suppress(OSError):
                self.ahead = self.sock.recv(RECEIVE)
        return bool(self.ahead)

    def refuse(self, error: RefusalError) -> None:
        """Answer with an error of ours, and read no other request."""
        answer = refusal(error.status, str(error), error.retry_after)
        self.front.refused(self.received_ns)
        if self.head:
            told = SimpleNamespace(status=str(error.status), headers=[], sent=len(answer))
            self.front.access_log.write(told, self.head.environ, self.received_ns)
        self.conclude(answer)

    def fail(self, error: BaseException, what: str) -> None:
        """Log what an app raised and answer with 500."""
        self.front.log.error("Error handling request %s", what, exc_info=error)
        self.conclude(refusal(500, "the server failed on this request"))

    def conclude(self, answer: bytes) -> None:
        """Give a whole answer, which is the last one; nothing where half of another was given: its missing end says it all."""
        if self.state in (State.HEAD, State.BODY):
            self.state = State.BUSY
        if self.state is State.BUSY and not self.speaking:
            with suppress(AbandonedError):
                self.sendall(answer)
        self.finish(closes=True)

    def finish(self, *, closes: bool) -> None:
        """The answer is complete: go on once it is sent."""
        self.release()
        self.task = self.head = None
        if self.state is State.CLOSED:
            return
        self.closes = closes
        self.done = True
        if not self.out.size:
            self._next()

    def _next(self) -> None:
        self.speaking = self.done = False
        if self.closes:
            self._linger()
            return
        self.state = State.HEAD
        self.deadline = self.front.now + self.front.keepalive
        if not self.ended and not self.events & select.EPOLLIN:
            self._watch(self.events | select.EPOLLIN)
        if self.ahead or self.ended:
            self.front.soon.append(self)

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
            self._watch(self.events | select.EPOLLOUT)

    def _await_taking(self) -> None:
        self.taken = 0
        self.deadline = self.front.now + SILENT_SECONDS

    def _say(self, data: bytes) -> None:
        """Send, from the loop and not from a task."""
        task = self.task
        try:
            self.send(data)
        except AbandonedError:
            if task:
                task.throw(AbandonedError())

    def sendall(self, data: bytes) -> None:
        """Send a part of an answer. gunicorn's `Response`, too, calls it so."""
        self.speaking = True
        self.send(data)

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
        self._watch(self.events & ~select.EPOLLOUT)
        self.deadline = FOREVER
        if self.parked == "write":
            self._resume()
        elif self.done:
            self._next()

    def drain(self) -> None:
        """Wait, in a task, until the client has taken what is kept, if that is much."""
        if self.out.size > UNSENT:
            self._park("write")

    # --- waiting and ending --------------------------------------------------------------------------------------------

    def _park(self, what: str) -> None:
        if self.state is State.CLOSED:  # nobody would ever resume it
            raise AbandonedError
        self.parked = what
        try:
            self.front.tasks.park()
        finally:
            self.parked = ""

    def _resume(self) -> None:
        if self.task:
            self.task.switch()

    def _watch(self, events: int) -> None:
        if events != self.events and self.state is not State.CLOSED:
            self.events = events
            self.front.loop.modify(self.sock.fileno(), events)

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

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state is State.HEAD and self.ahead:
            self.received_ns = time.monotonic_ns()
            self.refuse(SlowError(f"the head of the request was not there {HEAD_SECONDS:g} s after its first byte"))
        elif self.state is State.BODY and self.arriving:
            came, left = self.arriving.came, len(self.arriving.rest)
            message = (
                f"the body came too slowly: after {came} of {came + left} bytes nothing for {SILENT_SECONDS:g} s, or too late"
            )
            self.arriving = None
            self.refuse(SlowError(message))
        elif self.parked == "read" and self.task:
            self.task.throw(SlowError(f"the client sent nothing for {SILENT_SECONDS:g} s"))
        elif self.parked or self.out.size:
            self.lose()
        else:
            self.close()

    def quit(self) -> None:
        """Close, since nothing was asked for in a while; what has come this very moment is answered first."""
        if not self.asks:
            self.close()

    def lose(self) -> None:
        """The client is gone: drop its request, wherever that waits."""
        task, waits = self.task, self.state is State.BUSY
        self.close()
        if task and waits:
            task.throw(AbandonedError())

    def _linger(self) -> None:
        """Say that nothing follows, and read until the client has understood."""
        if self.ended:
            self.close()
            return
        self.state = State.LINGER
        self.ahead = b""
        self.deadline = self.front.now + LINGER_SECONDS
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._watch(select.EPOLLIN)

    def close(self) -> None:
        """Close the socket and forget the rest."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.out.clear()
        self.arriving = None
        self.release()
        self.front.forget(self)
        self.sock.close()
