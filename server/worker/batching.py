"""The worker class: one thread, one event loop, every request a greenlet, batch what is ready."""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from types import FrameType

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from server import exits, serving
from server.exits import ConfigurationError
from server.states import Phase
from server.worker.assistant import Assistants
from server.worker.batcher import Batcher
from server.worker.boot import leave
from server.worker.channel import State
from server.worker.front import Front
from server.worker.loop import Loop
from server.worker.tasks import Tasks
from server.worker.watchdog import Watchdog

TICK = 0.25
"""Seconds between looks at deadlines, at the page and at gunicorn's wishes."""
GROUP_SECONDS = 1.0
"""The master must have heard all that came up to so long after a TERM that it did not send: had that come to it too, it knew."""
HUNG_STATUS = 70

_NOT_OURS = ("permit_obsolete_folding", "strip_header_spaces")


class BatchingWorker(Worker):
    """A worker that batches what is ready; gunicorn starts and ends it as any other."""

    callers = 1
    """How many threads call a model at once, whatever gunicorn's `threads` says."""
    asked_ns = 0
    """When a TERM came, by the monotonic clock; 0 before."""

    @classmethod
    def check_config(cls, cfg: Config, _log: Logger) -> None:
        """Stop the start, in one sentence, for settings of gunicorn's that this worker does not serve."""
        asked = [name for name in _NOT_OURS if getattr(cfg, name, False)]
        asked += ["TLS (certfile, keyfile)"] if cfg.is_ssl else []
        asked += ["HTTP/2 (http_protocols)"] if "h2" in cfg.http_protocols else []
        asked += ["proxy_protocol"] if cfg.proxy_protocol != "off" else []
        asked += ["protocol = uwsgi"] if cfg.protocol != "http" else []
        if asked:
            message = f"{', '.join(asked)}: not served by this worker class; use -k gthread, or a proxy in front of it"
            exits.leave(ConfigurationError(message))

    def init_process(self) -> None:
        """Make the loop; gunicorn then loads the app and calls `post_worker_init` and `run`."""
        self.loop = Loop()
        self.tasks = Tasks()
        self.watchdog = Watchdog(self._bite)
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the app, and make this worker's line the one in which its requests wait."""
        super().load_wsgi()
        served = serving.current()
        batcher = Batcher(self.tasks, self.watchdog, Assistants(self.loop), served.steady_ms)
        batcher.limit(served.settings.max_queue, served.settings.request_timeout)
        served.line = batcher
        self.front = Front(self, self.loop, self.tasks, batcher, served)

    def exchange(self, request: bytes) -> bytes:
        """Send one request through this worker's own connection code and give the response: the loop turns until it is there."""
        ours, theirs = socket.socketpair()
        logged, self.front.access_log.on = self.front.access_log.on, False
        answer: list[bytes] = []
        connection = self.front.open(theirs, ("127.0.0.1", 0), ("127.0.0.1", 0))
        client = threading.Thread(target=_talk, args=(ours, request, answer))
        client.start()
        while connection.state is not State.CLOSED:  # which the client's end wakes the loop for
            self.front.turn(TICK)
        client.join()
        self.front.access_log.on = logged
        return b"".join(answer)

    def run(self) -> None:
        """Serve until asked to leave, and then until all that was accepted is answered."""
        self.watchdog.start(serving.current().settings.request_timeout)
        self.loop.add(self.PIPE[0], self._wake)  # a signal turns the loop
        self.front.listen(self.sockets)
        due = 0.0
        while self.front.connections or not self.front.leaving:
            self.front.read(TICK)
            if self.front.now >= due:
                due = self.front.now + TICK
                self.notify()
                self.front.tick()
                self._look()
            self.front.work()
        self.watchdog.stop()

    def count_request(self) -> None:
        """One more request; after `max_requests` the master is asked for another worker, and ends this one once that serves."""
        self.nr += 1
        if self.nr == self.max_requests:
            self.log.info("Autorestarting worker, once another serves in its place.")
            serving.current().spend()

    def leave(self) -> None:
        """Take no more connections, and end when those that are open are done."""
        self.alive = False
        serving.current().leave()
        self.front.leave()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leave, but finish the drain first if a TERM reached the whole process group: the master says when."""
        self.asked_ns = self.asked_ns or time.monotonic_ns()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leave at once."""
        self.cfg.worker_int(self)
        os._exit(0)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's signature
        """gunicorn gives this worker up: its loop has stood still for too long."""
        self.cfg.worker_abort(self)
        os._exit(HUNG_STATUS)

    def _wake(self, _event: int) -> None:
        os.read(self.PIPE[0], 4096)
        self._look()

    def _look(self) -> None:
        """Leave if that was asked for and it is time."""
        if not self.asked_ns or not self.alive:
            return
        served = serving.current()
        told = bool(served.board.slots["leave"][served.slot]) or served.stopping or served.lost
        # The master may be in a load, and hear of it later; or never.
        heard = (served.board.get("heard_ns") - self.asked_ns) / 1e9 > GROUP_SECONDS
        waited = (time.monotonic_ns() - self.asked_ns) / 1e9 > self.cfg.graceful_timeout
        if told or ((heard or waited) and served.board.phase is not Phase.DRAINING):
            self.leave()

    def _bite(self) -> None:
        """A batch hangs: tell all who wait, and end."""
        served = serving.current()
        self.log.critical("Worker %d: an inference hangs, past WARMFORK_REQUEST_TIMEOUT; leaving", served.slot)
        faulthandler.dump_traceback(all_threads=True)
        self.front.answer_late()
        leave(HUNG_STATUS)


def _talk(sock: socket.socket, request: bytes, answer: list[bytes]) -> None:
    """Send `request`, read until the length that its answer says, and close."""
    with sock:
        sock.sendall(request)
        came = b""
        while b"\r\n\r\n" not in came:
            if not (data := sock.recv(1 << 16)):
                break
            came += data
        head, _, body = came.partition(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0) - len(body)
        answer.append(came)
        while left > 0 and (data := sock.recv(1 << 16)):
            answer.append(data)
            left -= len(data)
