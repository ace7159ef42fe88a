"""The connections of a worker: who is let in, who is read, who is late, who must go."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from functools import partial
from typing import Any

from server.serving import Serving
from server.turnstile import late
from server.worker import plain, unusual
from server.worker.batcher import Batcher
from server.worker.channel import State
from server.worker.common import Common
from server.worker.connection import Connection
from server.worker.error_page import refusal
from server.worker.head import Head
from server.worker.loop import Loop
from server.worker.share import surplus
from server.worker.tasks import Tasks

GATHER = 16
"""How often the loop looks for more to read before it runs a batch, at most: reading must not keep a batch from running."""
QUIET_SECONDS = 1.0
"""How long a worker that leaves keeps a connection on which nothing comes: a client with a pool may be about to use it."""


class Front(Common):
    """The connections of one worker and the loop that serves them."""

    def __init__(self, worker: Any, loop: Loop, tasks: Tasks, batcher: Batcher, serving: Serving) -> None:
        """Serve the app of gunicorn's `worker`."""
        super().__init__(worker, loop, tasks, serving)
        self.batcher = batcher
        self.connections: dict[int, Connection] = {}
        """By descriptor."""
        self.listeners: list[socket.socket] = []
        self.listening = False

    # --- listening ---------------------------------------------------------------------------------------------------

    def listen(self, listeners: list[socket.socket]) -> None:
        """Accept from `listeners`, one connection a turn of each, so that workers with less to do get their share."""
        self.listeners = listeners
        for listener in listeners:
            listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._listen(on=True)

    def _listen(self, *, on: bool) -> None:
        for listener in self.listeners if on != self.listening else []:
            if on:
                self.loop.add(listener.fileno(), partial(self._accept, listener))
            else:
                self.loop.remove(listener.fileno())
        self.listening = on

    def _accept(self, listener: socket.socket, _event: int = select.EPOLLIN) -> bool:
        """Take one connection; whether there was one."""
        if len(self.connections) >= self.cfg.worker_connections and not self._make_room():
            self._listen(on=False)  # until the next tick
            return False
        try:
            sock, client = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            # accept(2) gives errors of the new connection too, and of the network.
            self.log.warning("A connection could not be accepted: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
            self._listen(on=False)
            return False
        self.open(sock, client, listener.getsockname())
        return True

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, if one is."""
        idle = [each for each in self.connections.values() if each.idle]
        for connection in sorted(idle, key=lambda each: each.deadline):
            if not connection.asks:
                connection.close()
                return True
        return False

    def open(self, sock: socket.socket, client: Any, server: Any) -> Connection:
        """Serve a connection from now on."""
        sock.setblocking(False)  # noqa: FBT003 - as above
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, sock, client, server)
        self.connections[sock.fileno()] = connection
        return connection

    def forget(self, descriptor: int) -> None:
        """A connection is about to be closed."""
        self.loop.remove(descriptor)
        del self.connections[descriptor]

    # --- serving -----------------------------------------------------------------------------------------------------

    def turn(self, timeout: float) -> None:
        """Read all that is readable, then run one batch. Waits for at most `timeout` seconds if there is nothing to do."""
        self.read(timeout)
        self.work()

    def read(self, timeout: float) -> None:
        """Begin all that is readable. Waits for at most `timeout` seconds if there is nothing to do."""
        batcher, left = self.batcher, self.leaving
        self.loop.turn(0 if batcher.ready or self.soon else timeout)
        self._advance()
        for _ in range(GATHER):
            # Nothing more can come where every connection waits for its batch.
            waits = batcher.ready and not batcher.full and batcher.waiting < len(self.connections)
            if not waits or not self.loop.turn(0):
                break
            self._advance()
        # What had come when this worker began to leave has been read by now.
        self.refusing = left and self.serving.stopping

    def work(self) -> None:
        """Run one batch, and go on with what its clients have sent meanwhile."""
        self.batcher.turn()
        self._advance()

    def _advance(self) -> None:
        while self.soon:
            self.soon.popleft()()

    def tick(self) -> None:
        """What is done a few times a second: deadlines, a look at the page, whether there is room again.

        After `read`: what came in time while a batch ran is not late.
        """
        now = self.now
        for connection in list(self.connections.values()):
            if connection.deadline < now:
                connection.expire()
            elif self.leaving and connection.idle and now - self.left > QUIET_SECONDS:
                connection.quit()
        self.overdue = self.leaving and now - self.left > self.cfg.graceful_timeout
        board, slot = self.serving.board, self.serving.slot
        board.slots["waiting"][slot] = self.batcher.waiting
        staying = sum(not connection.closes for connection in self.connections.values())
        self.surplus = surplus(board, slot, staying, self.cfg.timeout)
        if not self.leaving:
            self._listen(on=True)

    def leave(self) -> None:
        """Take no new connections, but those that already wait if nobody else will; close each after its next answer."""
        if self.leaving:
            return
        self._listen(on=False)
        for listener in self.listeners:
            while self.serving.stopping and self._accept(listener):
                pass
            listener.close()  # at once: who comes later is refused by the kernel, and not left with a request that nobody reads
        self.listeners = []
        self.leaving = True
        self.left = self.now

    # --- answering ---------------------------------------------------------------------------------------------------

    def answer(self, connection: Connection, head: Head | None) -> None:
        """Answer the request at hand, in its task; `head` is None where gunicorn has to read it."""
        if head:
            plain.answer(connection, self, head)
        else:
            unusual.answer(connection, self)

    def answer_late(self) -> None:
        """Answer 504 to all who wait, from another thread than the loop's, which hangs: the process ends next."""
        error = late(self.patience)
        answer = refusal(error.status, str(error))
        for connection in list(self.connections.values()):
            with suppress(OSError):
                if connection.state is State.HEAD and not connection.asks:
                    continue
                if connection.state in (State.HEAD, State.BODY, State.BUSY) and not connection.speaking:
                    connection.sock.send(answer)
                connection.sock.shutdown(socket.SHUT_WR)
                # What is unread when a socket is closed turns into a reset, which may overtake the answer.
                while connection.sock.recv(1 << 16):
                    pass
