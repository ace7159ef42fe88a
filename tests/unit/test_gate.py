"""The gate of a listening socket."""

from __future__ import annotations

import os
import socket

import pytest

from server import gate


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_shut(host: str) -> None:
    """Who has come is taken and heard, nobody comes after that, in whichever process; a closed socket then refuses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as waits,
    ):
        address = listener.getsockname()[:2]
        child = os.fork()
        if not child:
            gate.shut(listener)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
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


def test_no_tcp() -> None:
    """A socket that is not TCP's is left as it is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gate.shut(ours)
        theirs.sendall(b"\0" * 13 + b"\2")
        assert len(ours.recv(100)) == 14
