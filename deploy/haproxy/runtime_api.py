"""HAProxy's runtime API: a command and its answer on a connection to its stats socket (HAProxy's management guide, section 9)."""

from __future__ import annotations

import csv
import socket
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 5.0
"""Seconds without a byte of an answer."""


class RuntimeApiError(Exception):
    """HAProxy cannot be asked, or refused a command."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server of a backend is, as HAProxy knows it."""

    name: str
    address: str
    port: int
    check_port: int

    @property
    def bind(self) -> str:
        """The address of the workers."""
        return f"{self.address}:{self.port}"

    @property
    def management(self) -> str:
        """The address of the management process."""
        return f"{self.address}:{self.check_port}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What HAProxy says of a server: its state and check in HAProxy's words, its weight, and counts since HAProxy's start."""

    status: str
    check: str
    weight: int
    answered: int
    failed: int
    """Those of `answered` that were 5xx, had no answer, or found no connection."""

    @property
    def taken(self) -> bool:
        """Whether new requests are sent there."""
        return self.status.startswith("UP") and self.weight > 0


class RuntimeApi:
    """One backend, seen and set through the stats socket at `path`."""

    def __init__(self, path: Path, backend: str) -> None:
        """Connect anew for each command: HAProxy may be reloaded in between."""
        self.path = path
        self.backend = backend

    def ask(self, command: str) -> str:
        """The answer to one command. Raises `RuntimeApiError` if there is none."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(str(self.path))
                connection.sendall(command.encode() + b"\n")
                return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        except OSError as error:
            message = f"HAProxy's socket {self.path}: {error}"
            raise RuntimeApiError(message) from None

    def set(self, servers: dict[str, str]) -> None:
        """`{"blue": "weight 1", "green": "state ready"}`, in order. Raises `RuntimeApiError` with what HAProxy says to it."""
        command = "; ".join(f"set server {self.backend}/{name} {what}" for name, what in servers.items())
        if said := self.ask(command).strip():
            message = f"HAProxy refused {command!r}: {said}"
            raise RuntimeApiError(message)

    def places(self) -> list[Place]:
        """The servers of the backend. Raises `RuntimeApiError` if there is no such backend."""
        _version, header, *lines = [*self.ask(f"show servers state {self.backend}").splitlines(), ""]
        if not header.startswith("# "):
            message = f"HAProxy has no backend {self.backend!r}"
            raise RuntimeApiError(message)
        rows = csv.DictReader([header[2:], *filter(None, lines)], delimiter=" ")
        return [Place(row["srv_name"], row["srv_addr"], int(row["srv_port"]), int(row["srv_check_port"])) for row in rows]

    def traffic(self, name: str) -> Traffic:
        """What HAProxy says of the server `name`."""
        lines = self.ask("show stat").removeprefix("# ").splitlines()
        for row in csv.DictReader(lines):
            if (row["pxname"], row["svname"]) == (self.backend, name):
                lost = int(row["econ"]) + int(row["eresp"])
                answered = sum(int(row[f"hrsp_{kind}"]) for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other"))
                check = " ".join(filter(None, (row["check_status"], row["check_code"], row["last_chk"])))
                return Traffic(row["status"], check, int(row["weight"]), answered + lost, int(row["hrsp_5xx"]) + lost)
        message = f"HAProxy has no server {self.backend}/{name}"
        raise RuntimeApiError(message)
