"""A client that decides what the server reads at once, and takes the answers apart: one connection, raw bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from server.tensors import DTYPES

PATIENCE = 30.0
"""Seconds after which an answer, or an end, that has not come is a failure."""
GLANCE_MS = 1
"""Milliseconds between two looks at what the server has not read yet, should nothing else happen."""
EAGER = 20
"""Looks that come at once, before those that are `GLANCE_MS` apart: a server that waits for bytes is quicker than a timer."""

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _NLMSG_ERROR = 4, 20, 1, 2
_NLMSG, _INET_DIAG_REQ, _QUEUES = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=II")
_QUEUES_AT = _NLMSG.size + 4 + 48 + 4
"""Where an `inet_diag_msg` has its queues: after state and timer, the socket's id, and when the timer expires."""


class Kernel:
    """What the kernel says of the socket at the other end of a TCP connection of this machine (`sock_diag(7)`)."""

    def __init__(self) -> None:
        """Open a netlink socket."""
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)

    def close(self) -> None:
        """Close it."""
        self._netlink.close()

    def unread(self, sock: socket.socket) -> int:
        """The bytes sent on `sock` that the program at the other end has not read yet; 0 where nobody will."""
        (here, port), (there, peer) = sock.getsockname(), sock.getpeername()
        # Ports and addresses as in a packet that the other end sends, each address in 16 bytes; any interface, any cookie.
        addresses = b"".join(socket.inet_aton(address).ljust(16, b"\0") for address in (there, here))
        identity = struct.pack("!HH", peer, port) + addresses + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        asked = _INET_DIAG_REQ.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
        self._netlink.send(_NLMSG.pack(_NLMSG.size + len(asked), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + asked)
        said = self._netlink.recv(1 << 12)
        if _NLMSG.unpack_from(said)[1] == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", said, _NLMSG.size)[0]
            if code == errno.ENOENT:
                return 0
            raise OSError(code, "sock_diag")
        received: int = _QUEUES.unpack_from(said, _QUEUES_AT)[0]
        (sent,) = struct.unpack("=i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
        return received + int(sent)


@dataclass(frozen=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    """By name in lower case."""
    body: bytes

    @property
    def interim(self) -> bool:
        """Whether another answer to the same request follows, as after `100 Continue`."""
        return self.status < 200

    @property
    def says_close(self) -> bool:
        """Whether it tells the client that no other answer will follow."""
        return self.headers.get("connection", "").lower() == "close"

    def values(self) -> list[Any]:
        """The elements of all outputs of an inference, in order, whether they came as JSON or as bytes."""
        length = int(self.headers.get("inference-header-content-length", len(self.body)))
        found, rest = [], self.body[length:]
        for output in json.loads(self.body[:length])["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            found += output["data"] if size is None else np.frombuffer(rest[:size], DTYPES[output["datatype"]]).tolist()
            rest = rest[size or 0 :]
        return found


def take(stream: bytes, *, bodiless: bool | None) -> tuple[Answer, int] | None:
    """The first answer in `stream` and where it ends; None while it is not whole.

    `bodiless`: whether it answers a HEAD. None where that is not known and nothing else will come: a body never
    begins like an answer, and is never cut. Raises `ValueError` for what is no answer.
    """
    head, end, rest = stream.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *fields = head.decode("latin-1").split("\r\n")
    version, status, _ = line.split(" ", 2)
    if not version.startswith("HTTP/1.") or len(status) != 3:
        message = f"no status line: {line!r}"
        raise ValueError(message)
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    interim = status.startswith("1")
    if not interim and "content-length" not in headers:
        message = f"an answer without a length: {head!r}"
        raise ValueError(message)
    length = 0 if interim or bodiless else int(headers["content-length"])
    if bodiless is None and rest[:7] in (b"", b"HTTP/1."):
        length = 0
    if len(rest) < length:
        return None
    return Answer(int(status), headers, rest[:length]), len(head) + len(end) + length


class Wire:
    """One connection. `send` returns when the server has read what was sent, so that pieces are read one by one."""

    def __init__(self, port: int, kernel: Kernel) -> None:
        """Connect to `port` of this machine."""
        self._kernel = kernel
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._came = b""
        self.ended = False
        """Whether the server has closed, from what was read so far."""

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Close it."""
        self._sock.close()

    def send(self, piece: bytes) -> None:
        """Send `piece` and wait until the server has read it, or has closed."""
        with suppress(BrokenPipeError, ConnectionResetError):  # the answer that came before is still to be read
            self._sock.sendall(piece)
        end, looks = time.monotonic() + PATIENCE, 0
        while not self.ended and self._kernel.unread(self._sock):
            assert time.monotonic() < end, f"{piece[:80]!r} was not read within {PATIENCE:g} s; before, there came {self._came!r}"
            self._read(0 if looks < EAGER else GLANCE_MS)
            looks += 1
        if not self.ended:
            self._read(0)

    def send_all(self, pieces: Iterable[bytes], *, half_close: bool = False) -> None:
        """Send one piece after the other, until the server has closed; then say, if asked to, that no more will come."""
        for piece in pieces:
            if self.ended:
                return
            self.send(piece)
        if half_close:
            with suppress(OSError):  # so it is if the server has reset the connection
                self._sock.shutdown(socket.SHUT_WR)

    def answers(self, *, bodiless: bool = False) -> list[Answer]:
        """Wait for the answers to one request, the interim ones and the last; that is missing where the server closes instead.

        `bodiless`: whether the request was a HEAD.
        """
        found: list[Answer] = []
        while not found or found[-1].interim:
            answer = self._answer(bodiless=bodiless)
            if answer is None:
                break
            found.append(answer)
        return found

    def _answer(self, *, bodiless: bool) -> Answer | None:
        while (found := take(self._came, bodiless=bodiless)) is None:
            if self.ended:
                assert not self._came, f"the server closed within an answer: {self._came!r}"
                return None
            assert self._read(int(PATIENCE * 1000)), (
                f"neither an answer nor an end within {PATIENCE:g} s; there came {self._came!r}"
            )
        answer, length = found
        self._came = self._came[length:]
        return answer

    def rest(self) -> list[Answer]:
        """Wait for the end; give all answers until then."""
        while not self.ended:
            assert self._read(int(PATIENCE * 1000)), f"the server did not close within {PATIENCE:g} s; there came {self._came!r}"
        return list(self._rest())

    def _rest(self) -> Iterator[Answer]:
        while found := take(self._came, bodiless=None):
            self._came = self._came[found[1] :]
            yield found[0]
        assert not self._came, f"the server closed within an answer: {self._came!r}"

    def _read(self, milliseconds: int) -> bool:
        """Read what there is, waiting for so long at most; give whether something came, the end included."""
        if not self._poll.poll(milliseconds):
            return False
        try:
            part = self._sock.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        self._came += part
        self.ended = not part
        return True
