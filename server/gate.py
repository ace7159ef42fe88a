"""The gate of listening sockets: shut, so that nobody comes in any more while those who already wait are taken."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress

ATTACH_FILTER = 26
"""SO_ATTACH_FILTER, which Python's `socket` does not name."""
FLAGS_BYTE, SYN = 13, 0x02
"""Where a TCP header holds its flags, and the one that asks for a new connection (RFC 9293, 3.1)."""
LOAD_BYTE, JUMP_IF_SET, RETURN = 0x30, 0x45, 0x06
"""Instructions of the classic Berkeley Packet Filter, each with its two jumps and its operand (Linux, `bpf_common.h`)."""
WHOLE = 0xFFFFFFFF
"""As many bytes of a packet as there are."""
NO_SYN = ((LOAD_BYTE, 0, 0, FLAGS_BYTE), (JUMP_IF_SET, 0, 1, SYN), (RETURN, 0, 0, 0), (RETURN, 0, 0, WHOLE))
"""Drop a packet that asks for a connection, and let all others pass; connections that are accepted later inherit it."""
HANDSHAKE_SECONDS = 0.2
"""How long the last word of who was answered before may be under way: a round trip, if not a very long one."""


def shut(listeners: Iterable[socket.socket]) -> None:
    """Let no new connection come to `listeners`, in any process that holds them. Those that have come can still be accepted.

    Between a last `accept` and a `close` there would always be room for one more connection, which the close resets, with
    the request that was sent on it. Who asks from now on hears nothing and asks again after one second, three, seven, as TCP
    does: once everybody has closed the socket that is refused, or comes to another server that has the port. Sockets that are
    not TCP's stay as they are, and so do those where the kernel allows no filter, or that somebody has closed. Waits until who
    has begun to connect from another machine is in.
    """
    far = False
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in NO_SYN))
            with suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HP", len(NO_SYN), ctypes.addressof(program)))
                far |= not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
    if far:
        time.sleep(HANDSHAKE_SECONDS)
