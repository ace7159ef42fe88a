"""Socket activation as systemd does it: the socket is there before the server and after it, and nobody is refused."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.clients import infer
from tests.models import BATCHED, identity, put
from tests.server import PATIENCE, Server

_ACTIVATE = """
import os, sys
given = int(sys.argv[1])
os.dup2(given, 3)
if given != 3:
    os.close(given)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What sd_listen_fds(3) says of descriptors that a service is given."""


def _activated(models: Path, bound: socket.socket) -> Server:
    server = Server(models)
    server.sockets = (bound.fileno(),)
    server.command[:0] = [sys.executable, "-c", _ACTIVATE, str(bound.fileno())]
    return server


def _request(address: tuple[str, int]) -> socket.socket:
    """A request that nobody has to read yet."""
    client = socket.create_connection(address, timeout=PATIENCE)
    client.sendall(infer(5))
    return client


def _status(client: socket.socket) -> int:
    return int(client.recv(4096)[9:12])


def test_who_comes_before_and_between(tmp_path: Path) -> None:
    """Who comes before the server, or between its end and the next, waits and is answered; a new master has the socket too."""
    put(tmp_path, "m", identity("FP64", 1), BATCHED)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        for _ in range(2):
            with _request(bound.getsockname()) as early, _activated(tmp_path, bound) as server:
                assert 200 == _status(early)
                server.hand_over()
                server.reload()
                with _request(bound.getsockname()) as late:
                    assert 200 == _status(late)
