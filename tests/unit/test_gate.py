"""The gate of listening sockets."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from server import gate
from server.processes import fork_child


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_shut(host: str) -> None:
    """Who has come is taken and heard, nobody comes after that, in whichever process; a closed socket then refuses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def child() -> int:
        gate.shut([listener])
        return 0

    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as waits,
    ):
        address = listener.getsockname()[:2]
        assert os.waitpid(fork_child(child), 0)[1] == 0
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        with listener.accept()[0] as taken:
            waits.sendall(b"request")
            assert taken.recv(100) == b"request"
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


@pytest.mark.parametrize(("host", "waits"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])  # noqa: S104
def test_waits_for_who_comes_from_afar(monkeypatch: pytest.MonkeyPatch, host: str, *, waits: bool) -> None:
    """The last word of a handshake may be under way only where clients are on other machines."""
    waited: list[float] = []
    monkeypatch.setattr(gate, "time", SimpleNamespace(sleep=waited.append))
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        gate.shut([listener])
    assert waited == [gate.HANDSHAKE_SECONDS] * waits


def test_no_tcp() -> None:
    """A socket that is not TCP's is left as it is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gate.shut([ours])
        theirs.sendall(b"\0" * 13 + b"\2")
        assert len(ours.recv(100)) == 14


def test_closed() -> None:
    """A socket that somebody has closed keeps no other one open, and no server from stopping."""
    with socket.create_server(("127.0.0.1", 0)) as closed, socket.create_server(("127.0.0.1", 0)) as listener:
        closed.close()
        gate.shut([closed, listener])
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.2)
