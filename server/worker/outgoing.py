"""What a client has still to take: sent as far as it goes at once, kept beyond that."""

from __future__ import annotations

import socket
from collections import deque


class Outgoing:
    """The way to one client; it never waits. Raises `OSError` where the client is gone."""

    __slots__ = ("kept", "size", "sock")

    def __init__(self, sock: socket.socket) -> None:
        """Send over `sock`, which does not block."""
        self.sock = sock
        self.kept: deque[memoryview] = deque()
        self.size = 0
        """Bytes that are kept."""

    def send(self, data: bytes) -> int:
        """Send `data` after all that is kept; how many bytes of it are kept too."""
        sent = 0
        if not self.kept:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
        left = len(data) - sent
        if left:
            self.kept.append(memoryview(data)[sent:])
            self.size += left
        return left

    def flush(self) -> int:
        """Send what is kept, now that there is room; how many bytes went."""
        before = self.size
        while self.kept:
            try:
                sent = self.sock.send(self.kept[0])
            except (BlockingIOError, InterruptedError):
                break
            self.size -= sent
            if sent < len(self.kept[0]):
                self.kept[0] = self.kept[0][sent:]
            else:
                self.kept.popleft()
        return before - self.size

    def clear(self) -> None:
        """Keep nothing."""
        self.kept.clear()
        self.size = 0
