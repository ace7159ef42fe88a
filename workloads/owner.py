"""Which of our connections a process on this machine has accepted, asked of the kernel one by one.

`/proc/net/tcp` would say it too, but after many short connections it is long, and to read it takes longer than the requests that
are measured meanwhile.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ANY = 0xFFFFFFFF
_HEAD = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBBI")
_PLACE = struct.Struct("!HH4s12x4s12xIII")
_AT = _HEAD.size + 4
"""Where the place stands in the answer: after its head and the state."""
_INODE = _AT + _PLACE.size + 16
"""And the inode: four numbers later."""


def held(pid: int, port: int, clients: Iterable[int]) -> frozenset[int]:
    """Of the loopback connections from the ports `clients` to `port`, those that `pid` holds. Needs the rights to look at it.

    The question and its answer are the kernel's `sock_diag(7)`.
    """
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            inodes.add(str(descriptor.readlink()))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
        return frozenset(client for client in clients if f"socket:[{_inode(kernel, port, client)}]" in inodes)


def _inode(kernel: socket.socket, port: int, client: int) -> int:
    """The inode of the server's end of a connection; 0 if there is none, or nobody has accepted it."""
    here = socket.inet_aton("127.0.0.1")
    question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ANY) + _PLACE.pack(
        port, client, here, here, 0, _ANY, _ANY
    )
    kernel.send(_HEAD.pack(_HEAD.size + len(question), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + question)
    answer = kernel.recv(4096)
    if _HEAD.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0
    if _PLACE.unpack_from(answer, _AT)[1] != client:  # of a connection that is no more it names the listener
        return 0
    return int(struct.unpack_from("=I", answer, _INODE)[0])
