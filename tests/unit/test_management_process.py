"""The management process itself: started as the master starts it, asked over its socket."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from server import notice
from server.notice import Notice
from server.scoreboard import NEVER, Scoreboard, now_ms, pack
from server.states import Phase, State

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0


@dataclass
class Management:
    """One management process; the test is its master."""

    board: Scoreboard
    sock: socket.socket
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> tuple[str, int]:
        """Where it answers."""
        host, port = self.sock.getsockname()
        return host, port

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Open a connection and say nothing."""
        return socket.create_connection(self.address, timeout=PATIENCE)

    def awaited(self) -> None:
        """Return once it answers."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask("/livez")
            except ConnectionRefusedError:
                assert time.monotonic() < end
                assert self.process.poll() is None
                select.select([], [], [], 0.005)
            else:
                return


def start(
    board: Scoreboard, sock: socket.socket, master: int | None = None, entry: tuple[str, ...] = ("-m", "server.management")
) -> Management:
    """Start it as the master does: fork, exec, two descriptors."""
    command = [sys.executable, *entry, "--board", str(board.fd), "--socket", str(sock.fileno())]
    command += ["--master", str(os.getpid() if master is None else master)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WARMFORK_")}
    fds = (board.fd, sock.fileno())
    return Management(board, sock, subprocess.Popen(command, pass_fds=fds, cwd=ROOT, env=environ, stderr=subprocess.PIPE))


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A socket that is bound and does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def management(bound: socket.socket) -> Iterator[Management]:
    """A process that answers, over an empty page; at the end it must be alive and must have said nothing."""
    started = start(Scoreboard.create(4), bound)
    try:
        started.awaited()
        yield started
        assert started.process.poll() is None
    finally:
        started.process.kill()
        _, said = started.process.communicate(timeout=PATIENCE)

    assert said == b""


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A child of the master that lives."""
    with subprocess.Popen([sys.executable, "-Sc", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process


def answers(port: int) -> bool:
    """Whether someone listens at a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def p95(management: Management, count: int = 40) -> float:
    """Seconds within which all but one in twenty of some probes are answered."""
    times = []
    for _ in range(count):
        begin = time.monotonic()
        management.ask("/livez")
        times.append(time.monotonic() - begin)
    return statistics.quantiles(times, n=20)[-1]


def test_a_probe_is_refused_before_it_can_be_answered(bound: socket.socket) -> None:
    """Until the process listens a connection is refused, and it answers within seconds of its start."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=PATIENCE)
    begin = time.monotonic()
    management = start(Scoreboard.create(1), bound)
    try:
        management.awaited()
        took = time.monotonic() - begin
    finally:
        management.process.kill()
        management.process.communicate(timeout=PATIENCE)

    assert took < 3


def test_probes_follow_a_start(management: Management, worker: subprocess.Popen[bytes]) -> None:
    """Not started, started and ready, draining, worker gone: each seen at the next request, with words."""
    board = management.board

    def probes() -> dict[str, int]:
        return {path: management.ask(path)[0].status for path in ("/livez", "/startupz", "/readyz")}

    assert probes() == {"/livez": 200, "/startupz": 503, "/readyz": 503}
    notice.publish(board, Notice(doing="digits/1: run"))
    assert "digits/1: run" in json.loads(management.ask("/startupz")[1])["reasons"]

    board.slots["pid"][0] = worker.pid
    board.slots["word"][0] = pack(State.ACTIVE, NEVER)
    board.set("generation", 1)
    board.enter(Phase.SERVING)
    assert probes() == {"/livez": 200, "/startupz": 200, "/readyz": 200}
    assert management.ask("/readyz")[1] == b'{"ready":true}'

    board.enter(Phase.DRAINING)
    assert json.loads(management.ask("/readyz")[1])["ready"] is False
    board.enter(Phase.SERVING)

    board.set("deadline_ms", now_ms() - 1000)
    assert probes() == {"/livez": 503, "/startupz": 200, "/readyz": 200}
    board.set("deadline_ms", 0)

    worker.kill()
    worker.wait(timeout=PATIENCE)
    assert probes() == {"/livez": 200, "/startupz": 200, "/readyz": 503}
    assert f"worker 0 (pid {worker.pid}) has ended" in json.loads(management.ask("/readyz")[1])["reasons"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/status", "application/json"), ("/metrics", "text/plain"), ("/livez", "application/json")],
)
def test_head_and_headers(management: Management, path: str, kind: str) -> None:
    """HEAD answers as GET without the body; nothing is stored; the type is said."""
    for method in ("GET", "HEAD"):
        answer, body = management.ask(path, method)

        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"].startswith(kind)
        assert bool(body) == (method == "GET")


def test_the_page_is_self_contained(management: Management) -> None:
    """It names no other host, and the policy allows its own script and style by hash alone."""
    answer, body = management.ask("/")
    policy = answer.headers["Content-Security-Policy"]

    assert b"//" not in body
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"innerHTML" not in body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/livez/x", 404), ("POST", "/readyz", 405), ("DELETE", "/", 405), ("PUT", "/status", 405)],
)
def test_what_there_is_not(management: Management, method: str, path: str, status: int) -> None:
    """An unknown path is 404 and a wrong method 405, with a sentence."""
    answer, body = management.ask(path, method)

    assert answer.status == status
    assert path in json.loads(body)["error"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_half_sent_requests_delay_no_probe(management: Management) -> None:
    """500 clients hold half a request each, and a probe is still answered within 100 ms."""
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(management.connect()).sendall(b"GET /livez HTTP/1.1\r\nHo")

        assert p95(management) < 0.1


def test_more_connections_than_there_may_be(management: Management) -> None:
    """Past the bound the oldest connection ends, and who comes now is answered."""
    with ExitStack() as stack:
        held = [stack.enter_context(management.connect()) for _ in range(1500)]

        assert p95(management) < 0.5
        assert held[0].recv(1) == b""
        held[-1].sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert held[-1].recv(12) == b"HTTP/1.0 200"


def test_clients_that_do_not_read_hold_no_thread(management: Management) -> None:
    """Clients that pipeline a page of requests and never read get one answer each at most."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(management.connect()).sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 250)

        assert p95(management) < 0.5


SHORT = """
from server.management import __main__, listener
listener.LIFE = 0.5
__main__.main()
"""


def dribble(client: socket.socket) -> None:
    """Send a byte now and then, for as long as it is taken."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        client.sendall(b"G")
        select.select([], [], [], 0.05)


def test_a_connection_that_dribbles_ends(bound: socket.socket) -> None:
    """A byte now and then keeps no connection open past its time."""
    management = start(Scoreboard.create(1), bound, entry=("-c", SHORT))
    try:
        management.awaited()
        with management.connect() as client, pytest.raises(OSError, match=r"reset|pipe"):
            dribble(client)
    finally:
        management.process.kill()
        management.process.communicate(timeout=PATIENCE)


def test_a_scrape_in_progress_delays_no_probe(management: Management) -> None:
    """Reading status and metrics is cheap: probes between them stay quick."""
    times = []
    for _ in range(20):
        management.ask("/metrics")
        begin = time.monotonic()
        management.ask("/status")
        times.append(time.monotonic() - begin)

    assert statistics.median(times) < 0.1


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 4096 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /status HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nab",
        b"GET /livez HTTP/1.1\r\n" + b"X-Long: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 1000,
    ],
)
def test_garbage_is_survived(management: Management, junk: bytes) -> None:
    """Whatever is sent, the next probe is answered, no trace comes back and nothing is logged."""
    with management.connect() as client:
        client.sendall(junk)
        answer = b""
        # What it did not read of too long a request turns its end into a reset.
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                answer += part

    assert b"Traceback" not in answer
    assert b" 500 " not in answer.partition(b"\r\n")[0]
    assert management.ask("/livez")[0].status == 200


def test_clients_that_reset_are_survived(management: Management) -> None:
    """A connection reset at every stage leaves no trace and no descriptor behind."""
    linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
    management.ask("/metrics")
    before = len(list(Path(f"/proc/{management.process.pid}/fd").iterdir()))
    for text in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") * 20:
        client = management.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.sendall(text)
        client.close()
    end = time.monotonic() + PATIENCE
    while (after := len(list(Path(f"/proc/{management.process.pid}/fd").iterdir()))) > before and time.monotonic() < end:
        management.ask("/livez")

    assert after <= before


def test_it_ignores_what_is_meant_for_the_group(management: Management) -> None:
    """Signals that a terminal or a supervisor sends to everyone do not end it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        management.process.send_signal(number)

    assert management.ask("/livez")[0].status == 200


def test_it_is_lean_and_named(management: Management) -> None:
    """`ps` shows its name, and it maps no engine."""
    for path in ("/", "/status", "/metrics"):
        management.ask(path)
    proc = Path(f"/proc/{management.process.pid}")
    maps = (proc / "maps").read_text()

    assert (proc / "cmdline").read_bytes().rstrip(b"\0") == b"warmfork: management"
    assert not [name for name in ("torch", "onnx") if name in maps]


def test_a_restart_takes_over_the_socket(management: Management) -> None:
    """After a crash the next one answers on the same socket, what had connected meanwhile included."""
    management.process.kill()
    management.process.communicate(timeout=PATIENCE)
    waiting = management.connect()
    waiting.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
    management.process = start(management.board, management.sock).process

    with waiting:
        assert waiting.recv(12) == b"HTTP/1.0 200"
    management.awaited()


def test_it_does_not_outlive_its_master(bound: socket.socket) -> None:
    """Started by someone who is not the master it was told of, it leaves at once."""
    management = start(Scoreboard.create(1), bound, master=1)

    _, said = management.process.communicate(timeout=PATIENCE)

    assert management.process.returncode == 0
    assert said == b""


MASTER = """
import os, socket, subprocess, sys
from server.scoreboard import Scoreboard
board, sock = Scoreboard.create(1), socket.socket()
sock.bind(("127.0.0.1", 0))
command = [sys.executable, "-m", "server.management", "--board", str(board.fd), "--socket", str(sock.fileno())]
command += ["--master", str(os.getpid())]
child = subprocess.Popen(command, pass_fds=(board.fd, sock.fileno()))
print(child.pid, sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_kill_9_of_the_master_ends_it() -> None:
    """No orphan stays when the master is killed, and the port is free."""
    with subprocess.Popen([sys.executable, "-c", MASTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
        try:
            pid, port = map(int, (master.stdout.readline() if master.stdout else b"").split())
            end = time.monotonic() + PATIENCE
            while not answers(port) and time.monotonic() < end:
                select.select([], [], [], 0.01)
            watched = os.pidfd_open(pid)
        finally:
            master.kill()
        gone, _, _ = select.select([watched], [], [], PATIENCE)
        os.close(watched)

    assert gone
    assert not answers(port)
