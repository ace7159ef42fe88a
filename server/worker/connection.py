"""One client: the requests that come over its channel, in order, and how far the one at hand is."""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent

from server.environ import HEADER_LENGTH, RECEIVED, RESERVE
from server.refusals import AbandonedError, BusyError, RefusalError, SlowError, TooLargeError, too_large
from server.worker.channel import FOREVER, LINGER_SECONDS, SILENT_SECONDS, Channel, State
from server.worker.common import Common
from server.worker.content import Arriving, Content
from server.worker.error_page import refusal
from server.worker.head import END, LONG, PIECES, Head, IncompleteHeadError

HEAD_SECONDS = 5.0
"""From the first byte of a head to its last."""
RECEIVE = 1 << 14
"""Bytes that are asked for at once where it is not known how many come; so many are copied of a body that comes with its head."""
AHEAD = 1 << 16
"""Bytes that are received of a client's next requests while one is being answered."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Channel):
    """One client. Requests are answered one after another, in the order in which they came."""

    __slots__ = (
        "ahead",
        "arriving",
        "client",
        "closes",
        "environ",
        "head",
        "interim",
        "late",
        "latest",
        "received_ns",
        "schemes",
        "seen",
        "server",
    )

    def __init__(self, front: Common, sock: socket.socket, client: Any, server: Any) -> None:
        """Serve `sock`, which does not block, for `client` at the address `server`."""
        super().__init__(front, sock, max(front.keepalive, HEAD_SECONDS))
        self.client = client
        self.server = server
        self.environ, self.schemes = front.heads.begin(client, server)
        self.ahead = b""
        """Received, but not yet looked at, or not yet enough."""
        self.seen = 0
        """How much of it was looked at in vain."""
        self.late = False
        """Whether it came when the server was going away already."""
        self.head: Head | None = None
        """That of the request at hand; None where gunicorn has to read it."""
        self.arriving: Arriving | None = None
        """Its body, where it is not there yet."""
        self.received_ns = 0
        self.latest = FOREVER
        """When the head or the body at hand must be there."""
        self.interim = False
        """Whether the client understands an interim answer: its head was read, and is of HTTP/1.1."""
        self.closes = False
        """Whether the answer is the last."""

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Read what has come: a part of the body at hand, or what `advance` looks at."""
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
            self.resume()
        elif len(self.ahead) >= AHEAD:
            self.watch(self.events & ~select.EPOLLIN)

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
        self.watch(self.events & ~select.EPOLLIN)
        if self.state is State.HEAD:
            self.advance()
        elif self.state is State.BODY and self.arriving:
            self._begin(self.arriving.content())  # the app says what is missing
        elif self.parked == "read":
            self.resume()
        elif self.state is State.BUSY and self.interim and not self.speaking:
            # Is it gone, or has it only said all that it had to say? Any client takes this, one that is gone answers by a reset.
            self.say(_CONTINUE)

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
                self._start(None)
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
            self.say(_CONTINUE)
        elif self.ended:
            self._begin(self.arriving.content())

    def _expect_more(self) -> None:
        self.deadline = min(self.front.now + SILENT_SECONDS, self.latest)

    def _begin(self, content: Content) -> None:
        assert self.head  # noqa: S101 - a plain request has one
        self.arriving = None
        self.head.environ["wsgi.input"] = content
        self._start(self.head)

    def more(self) -> bytes:
        """Wait, in a task, for what the client sends next; empty at its end. Raises `SlowError` if nothing comes."""
        if not self.ahead and not self.ended:
            self._expect_more()
            self.park("read")
            self.deadline = FOREVER
        data, self.ahead = self.ahead, b""
        return data

    def hurry(self) -> None:
        """All is said: what may still come of the body must come soon."""
        self.latest = self.front.now + LINGER_SECONDS

    # --- answering ---------------------------------------------------------------------------------------------------

    def _start(self, head: Head | None) -> None:
        self.head, self.interim = head, head is not None
        self.state = State.BUSY
        self.done = False
        self.deadline = FOREVER
        self.latest = self.front.now + HEAD_SECONDS
        self.front.count_request()
        self.front.tasks.start(self._answer)

    def _answer(self) -> None:
        self.task = getcurrent()
        try:
            self.front.answer(self, self.head)
        except BaseException:  # a defect of ours ends this connection: out of here it would end the loop, and all others
            self.front.log.exception("a connection failed")
            self.close()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come."""
        return self.state is State.HEAD and not self.ahead

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
                self.late = self.front.refusing
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
            self.proceed()

    def proceed(self) -> None:
        """Go on with the next request, or say that there will be no answer to it."""
        self.speaking = self.done = False
        if self.closes:
            self.linger()
            return
        self.state = State.HEAD
        self.deadline = self.front.now + self.front.keepalive
        if not self.ended and not self.events & select.EPOLLIN:
            self.watch(self.events | select.EPOLLIN)
        if self.ahead or self.ended:
            self.front.soon.append(self.advance)

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
