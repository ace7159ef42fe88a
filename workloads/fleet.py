"""Servers behind HAProxy, which sends to those that say they are ready; more and fewer of them as if they were workers."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bench.machine import DIES_WITH_US
from tests.server import Server, held_port
from workloads import children
from workloads.watch import Master, Ours, until

PROGRAM = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")

_CONFIGURATION = """
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 120s
    option redispatch 1
frontend requests
    bind 127.0.0.1:{port}
    default_backend servers
frontend statistics
    bind 127.0.0.1:{statistics}
    stats enable
    stats uri /
backend servers
    option httpchk GET /readyz
    # asked no more often than by deploy/haproxy: that would be felt where there are more of them
    default-server check inter 1s fall 1 rise 1
"""
_SERVER = "    server {place.port} 127.0.0.1:{place.port} port {place.management}\n"
_DRAIN = 2
"""Seconds that a server goes on serving when it has said that it is not ready: more than HAProxy needs to hear it."""


class Place(NamedTuple):
    """Where a server is to listen."""

    port: int
    management: int


class Fleet(Master):
    """HAProxy and its servers, of one worker each: what stands for a worker's pid is the port of a server."""

    def __init__(self, models: Path, most: int) -> None:
        """Prepare for up to `most` servers of the repository `models`. Raises `FileNotFoundError` where HAProxy is missing."""
        if PROGRAM is None:
            message = "haproxy is not installed"
            raise FileNotFoundError(message)
        self.models = models
        self.held = [held_port() for _ in range(2 + 2 * most)]
        self.port, self.statistics, *others = (each.getsockname()[1] for each in self.held)
        self.places = [Place(*pair) for pair in zip(others[::2], others[1::2], strict=True)]
        self.servers: list[Server] = []

    def __enter__(self) -> Self:
        """Start HAProxy and one server, and wait until it sends to that."""
        text = _CONFIGURATION.format(port=self.port, statistics=self.statistics)
        with ExitStack() as closing, tempfile.TemporaryDirectory(prefix="warmfork-haproxy-") as folder:
            configuration = Path(folder, "haproxy.cfg")
            configuration.write_text(text + "".join(_SERVER.format(place=place) for place in self.places), encoding="utf-8")
            command = [*DIES_WITH_US, str(PROGRAM), "-f", str(configuration)]
            self.proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 - found on the path
            closing.callback(self._end)
            until(lambda: not self.workers() and self.proxy.poll() is None, "HAProxy to see that no server is there")
            self.more()
            until(self.settled, "the first server")
            self.closing = closing.pop_all()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """End them all."""
        self.closing.close()

    def _end(self) -> None:
        with ExitStack() as closing:
            for each in self.held:
                closing.callback(each.close)
            closing.callback(self.proxy.wait)
            closing.callback(self.proxy.terminate)
            for server in self.servers:
                closing.callback(server.kill)

    def pid(self) -> int:
        """HAProxy's, which has nothing to obey."""
        return self.proxy.pid

    def workers(self) -> set[int]:
        """The ports to which HAProxy sends."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.statistics}/;csv") as page:
                rows = list(csv.DictReader(page.read().decode().splitlines()))
        except OSError:
            return {place.port for place in self.places}  # it does not answer yet, and takes all to be there at first
        return {int(row["svname"]) for row in rows if row["svname"].isdigit() and row["status"].startswith("UP")}

    def wanted(self) -> int:
        """As many as have been started."""
        return len(self.servers)

    def settled(self) -> bool:
        """Whether HAProxy sends to all of them. Raises `RuntimeError` with its log where one has ended."""
        for server in self.servers:
            if server.process.poll() is not None:
                message = f"a server ended with {server.process.poll()}:\n{server.log}"
                raise RuntimeError(message)
        return len(self.workers()) == len(self.servers)

    def more(self) -> None:
        """Start one more server, once all before it serve, as a rolling update does: it is polite to those alone."""
        until(self.settled, "the servers before it")
        place = self.places[len(self.servers)]
        bind, management_bind = (f"127.0.0.1:{port}" for port in place)
        where = {"bind": bind, "management_bind": management_bind}
        made = children.server(self.models, ready=False, drain=_DRAIN, polite=int(bool(self.servers)), **where)
        self.servers.append(made.start())

    def fewer(self) -> None:
        """Stop the newest, in order."""
        self.servers[-1].stop()
        self.servers.pop()

    def served(self) -> dict[int, int]:
        """By port."""
        return {place.port: sum(each.served().values()) for place, each in self._each()}

    def cold(self) -> int:
        """Of all servers."""
        return sum(each.cold() for _, each in self._each())

    def _each(self) -> list[tuple[Place, Ours]]:
        return [(place, Ours(f"http://127.0.0.1:{place.management}")) for place in self.places[: len(self.servers)]]
