"""The gate of a listening socket: shut, so that nobody comes in any more while those who already wait are taken."""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress

ATTACH_FILTER = 26
"""SO_ATTACH_FILTER, which Python's `socket` does not name."""
FLAGS_BYTE, SYN = 13, 0x02
"""Where a TCP header holds its flags, and the one that asks for a new connection (RFC 9293, 3.1)."""
LOAD_BYTE, JUMP_IF_SET, RETURN = 0x30, 0x45, 0x06
"""Instructions of the classic Berkeley Packet Filter, each with its two jumps and its operand (Linux, `bpf_common.h`)."""
NO_SYN = ((LOAD_BYTE, 0, 0, FLAGS_BYTE), (JUMP_IF_SET, 0, 1, SYN), (RETURN, 0, 0, 0), (RETURN, 0, 0, 0xFFFF))
"""Drop a packet that asks for a connection, and let all others pass."""


def shut(listener: socket.socket) -> None:
    """Let no new connection come to `listener`, in any process that holds it. Those that have come can still be accepted.

    Between a last `accept` and a `close` there would always be room for one more connection, which the close resets, with
    the request that was sent on it. Who asks from now on hears nothing, asks again after a second, as TCP does, and is
    then refused, or comes to another server that has the port. A socket that is not TCP's stays as it is, and so does one
    where the kernel allows no filter.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in NO_SYN))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HP", len(NO_SYN), ctypes.addressof(program)))
