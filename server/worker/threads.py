"""A worker of gunicorn's kind `gthread` that the rest of the server can see.

It renews its deadline on the page, leaves when the master says so, and can be talked to before it has a client.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import Any, cast

from gunicorn.http.message import Request
from gunicorn.workers.gthread import _DEFER, TConn  # type: ignore[attr-defined] # the stubs leave it out
from gunicorn.workers.gthread import ThreadWorker as GunicornThreadWorker

from server import serving
from server.scoreboard import now_ms
from server.states import Phase, State
from server.worker.boot import leave
from server.worker.connections import ErrorPage, bound_silence, is_noteworthy

GROUP_SECONDS = 1.0
"""How long a TERM that is not the master's own waits for word that the whole server drains."""
HUNG_STATUS = 70


class ThreadWorker(GunicornThreadWorker):
    """A `gthread` worker that the rest of the server can see."""

    asked_ns = 0
    """When a TERM came, by the monotonic clock; 0 before."""

    def notify(self) -> None:
        """Say to gunicorn and on the page that this worker lives; called at each turn of its loop, at least once a second."""
        super().notify()
        served = serving.current()
        if served.turnstile.hung():
            self.log.critical("Worker %d: an inference hangs, far past WARMFORK_REQUEST_TIMEOUT; leaving", served.slot)
            faulthandler.dump_traceback(all_threads=True)
            leave(HUNG_STATUS)
        if served.board.state(served.slot) is State.ACTIVE:
            served.board.renew(served.slot, now_ms() + int(self.cfg.timeout * 1000))
        if self.asked_ns and self.alive and self._may_leave(served):
            served.leave()
            super().handle_exit(0, None)

    def init_process(self) -> None:
        """Begin, with a log that is not about clients."""
        self.log.error_log.addFilter(is_noteworthy)
        super().init_process()

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to the pool; no client may hold a thread by its silence, one that was opened ahead least of all."""
        bound_silence(conn.sock)
        if conn.initialized or conn.data_ready or not self.alive or conn.wait_for_data(0):
            super().enqueue_req(conn)
            return
        silent: Future[Any] = Future()
        silent.set_result(_DEFER)  # what a thread says of it that has waited for 5 s
        self.finish_request(conn, silent)

    def _cap_keepalive(self, deadline: float) -> None:
        """Close idle connections by `deadline` when this worker leaves, also those that never sent anything."""
        super()._cap_keepalive(deadline)  # type: ignore[misc] # the stubs leave it out
        for connection in self.pending_conns:
            connection.timeout = min(connection.timeout or deadline, deadline)

    def handle_error(self, req: Request | None, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn cannot parse as the protocol writes errors."""
        page = ErrorPage()
        super().handle_error(req, cast("socket.socket", page), addr, exc)
        with suppress(OSError):
            client.sendall(page.as_json())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leave, but finish the drain first if a TERM reached the whole process group: the master says when."""
        if not self.asked_ns:
            self.asked_ns = time.monotonic_ns()
            self.method_queue.defer(lambda: None)  # the loop turns at once, and looks

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leave at once. gunicorn would shut its pool down, whose lock the interrupted thread may hold: it would hang."""
        os._exit(0)

    def _may_leave(self, served: serving.Serving) -> bool:
        told = bool(served.board.slots["leave"][served.slot]) or served.board.phase is Phase.STOPPING
        waited = (time.monotonic_ns() - self.asked_ns) / 1e9 > GROUP_SECONDS
        return told or (waited and served.board.phase is not Phase.DRAINING)

    def exchange(self, request: bytes) -> bytes:
        """Send one request through this worker's own connection code, in a thread of its pool, and give the response."""
        ours, theirs = socket.socketpair()
        address = ("127.0.0.1", 0)
        connection = TConn(self.cfg, theirs, address, address)
        connection.data_ready = True
        sender = threading.Thread(target=_send, args=(ours, request))
        sender.start()
        job = self.tpool.submit(self.handle, connection)
        job.add_done_callback(lambda _: connection.close())
        answer = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        sender.join()
        ours.close()
        job.result()
        return answer


def _send(to: socket.socket, content: bytes) -> None:
    to.sendall(content)
