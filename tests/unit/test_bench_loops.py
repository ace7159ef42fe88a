"""The load generator: answers in pieces, connections that end, arrivals that were fixed beforehand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from bench import loops

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Answer = Callable[[socket.socket], bool]
"""Answers one request; whether the connection stays open."""


def whole(client: socket.socket) -> bool:
    """Answer at once."""
    client.sendall(ANSWER)
    return True


def by_byte(client: socket.socket) -> bool:
    """Answer byte by byte."""
    for byte in ANSWER:
        client.sendall(bytes([byte]))
    return True


def last(client: socket.socket) -> bool:
    """Answer and close, as announced."""
    client.sendall(ANSWER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    return False


def refusal(client: socket.socket) -> bool:
    """Refuse."""
    client.sendall(ANSWER.replace(b"200 OK", b"503 Service Unavailable"))
    return True


def torn(client: socket.socket) -> bool:
    """Close in the middle."""
    client.sendall(ANSWER[:-2])
    return False


@contextmanager
def server(answer: Answer, size: int = len(REQUEST)) -> Iterator[int]:
    """Serve `answer` to each `size` bytes; give the port."""

    def serve(client: socket.socket) -> None:
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while client.recv(size, socket.MSG_WAITALL) and answer(client):
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("answer", [whole, by_byte])
def test_answers(answer: Answer) -> None:
    """An answer counts once, however many pieces it comes in; each has its latency."""
    with server(answer) as port:
        record = loops.closed(port, REQUEST, 4, 0.1)

    assert record.moments == sorted(record.moments)
    assert len(record.moments) == len(record.latencies) > 0
    assert min(record.latencies) > 0
    assert record.reopened == 0


def test_large() -> None:
    """A request that no socket's buffer holds is sent as the server takes it."""
    request = bytes(1 << 24)
    with server(whole, len(request)) as port:
        record = loops.closed(port, request, 2, 0.1)

    assert len(record.latencies) > 0


def test_reopened() -> None:
    """A server that closes after an answer, and says so, is asked on a new connection."""
    with server(last) as port:
        record = loops.closed(port, REQUEST, 2, 0.1)

    assert record.reopened >= len(record.latencies) > 0


@pytest.mark.parametrize("answer", [refusal, torn])
def test_failed(answer: Answer) -> None:
    """An answer other than 200, or half of one, ends the run with an error: a benchmark of errors is none."""
    with pytest.raises(ConnectionError), server(answer) as port:
        loops.closed(port, REQUEST, 1, 0.1)


def test_arrivals() -> None:
    """Arrivals are the same ones every time, in order, within the period, and as many as the rate says."""
    times = loops.arrivals(1000, 10)

    assert times == loops.arrivals(1000, 10)
    assert all(one < other for one, other in pairwise(times))
    assert 0 <= times[0] < times[-1] < 10
    assert 9700 < len(times) < 10300


def test_open() -> None:
    """Every arrival after the first moments is sent and answered once, though there are fewer connections than requests."""
    planned = [time for time in loops.arrivals(2000, loops.IGNORED_SECONDS + 0.2) if time >= loops.IGNORED_SECONDS]
    with server(by_byte) as port:
        record = loops.opened(port, REQUEST, 2, 0.2, 2000)

    assert len(planned) == len(record.latencies) == len(record.late)
    assert min(record.latencies) > 0
    assert min(record.late) >= 0
