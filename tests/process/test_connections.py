"""Connections that are open and silent: they cost a descriptor, and hold nobody up."""

from __future__ import annotations

import http.client
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.models import identity, put
from tests.server import Server

SILENT = 64


def _ask(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/v2/health/live")
    response = connection.getresponse()
    response.read()
    return response.status


def test_connections_opened_ahead(tmp_path: Path) -> None:
    """Clients that connect and say nothing are in nobody's way: requests pass them, their own too, and TERM does not wait."""
    put(tmp_path, "m", identity(), "")
    with Server(tmp_path, workers=1) as server, ExitStack() as stack:
        kept = http.client.HTTPConnection(server.host, server.port, timeout=15)  # were each waited for, it would be minutes
        stack.callback(kept.close)
        assert _ask(kept) == 200
        silent = [stack.enter_context(socket.create_connection((server.host, server.port))) for _ in range(SILENT)]
        assert _ask(kept) == 200

        late = http.client.HTTPConnection(server.host, server.port, timeout=15)
        for sock in (silent[SILENT // 2], silent[0], silent[-1]):
            late.sock = sock
            assert _ask(late) == 200
        assert _ask(kept) == 200

        server.send(signal.SIGTERM)
        server.clean(0, timeout=20)  # a request may take 30 s, so a graceful stop waits for 65
