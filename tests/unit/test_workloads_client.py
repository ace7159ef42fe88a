"""The client of the load tests: it does what a good client does when a server closes, and hides no request that was lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from workloads import client
from workloads.client import Client, Reopened
from workloads.owner import held

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
KEPT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"


class Peer:
    """A server that each test plays itself, and a client of it."""

    def __init__(self) -> None:
        """Listen on a port from the kernel."""
        self.closing = ExitStack()
        self.listener = self.closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self.listener.getsockname()[1]
        self.client = self.closing.enter_context(closing(Client("127.0.0.1", self.port, Reopened())))

    def accept(self) -> socket.socket:
        """The next connection."""
        return self.closing.enter_context(self.listener.accept()[0])

    def exchange(self, answer: bytes) -> tuple[str, socket.socket]:
        """One exchange on a connection that is new: `answer`, or the end if there is none."""
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.client.exchange, REQUEST)
            server = self.accept()
            assert server.recv(100) == REQUEST
            if answer:
                server.sendall(answer)
            else:
                server.close()
            return asked.result(), server


@pytest.fixture
def peer() -> Iterator[Peer]:
    """One, closed at the end."""
    made = Peer()
    with made.closing:
        yield made


def test_asked_to_close(peer: Peer) -> None:
    """After an answer with `Connection: close` the next request is sent on a new connection."""
    for _ in range(2):
        assert peer.exchange(LAST)[0] == ""
    assert peer.client.reopened == Reopened(asked=2)


def test_found_closed(peer: Peer) -> None:
    """An idle connection that the server has closed is seen before anything is sent on it."""
    _, server = peer.exchange(KEPT)
    server.close()

    assert peer.exchange(KEPT)[0] == ""
    assert peer.client.reopened == Reopened(found=1)


def test_crossed(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request on its way to a connection that is closed at that moment is sent again, and counted."""
    _, server = peer.exchange(KEPT)
    look: Callable[[socket.socket], bool] = client._ended  # noqa: SLF001 - the moment at which the server closes
    looks: list[bool] = []

    def close_after_look(connection: socket.socket) -> bool:
        looks.append(look(connection))
        server.close()
        return looks[-1]

    monkeypatch.setattr(client, "_ended", close_after_look)
    assert peer.exchange(KEPT)[0] == ""
    assert peer.client.reopened == Reopened(crossed=1)
    assert looks == [False]


def test_lost(peer: Peer) -> None:
    """A request that the server had, and left without an answer, has failed: it is not sent again."""
    _, server = peer.exchange(KEPT)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(peer.client.exchange, REQUEST)
        assert server.recv(100) == REQUEST
        server.close()

        assert asked.result() == "ConnectionError: closed without an answer"
    assert peer.client.reopened == Reopened()
    assert "closed without" in peer.exchange(b"")[0]  # nor is the first one of a new connection


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 no\r\nContent-Length: 4\r\n\r\nbusy", "answered 503 b'busy'"),
        (KEPT[:-1], "closed after"),
        (KEPT[:10], "closed after b'HTTP/1.1 2'"),
        (b"hello\r\n\r\n", "IndexError"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "ValueError"),
    ],
)
def test_failed(peer: Peer, answer: bytes, error: str) -> None:
    """Another status than 200 is a failure, and so is an answer that is cut off, or none."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(peer.client.exchange, REQUEST)
        server = peer.accept()
        server.recv(100)
        server.sendall(answer)
        server.close()

        assert error in asked.result()


def test_held(peer: Peer) -> None:
    """Whose connections are whose is known by the client's port; one that nobody has accepted is nobody's."""
    with socket.create_connection(("127.0.0.1", peer.port)) as first, socket.socket() as second:
        peer.accept()
        second.connect(("127.0.0.1", peer.port))
        clients = [first.getsockname()[1], second.getsockname()[1], 1]

        assert held(os.getpid(), peer.port, clients) == {clients[0]}
        assert held(os.getppid(), peer.port, clients) == frozenset()
