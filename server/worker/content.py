"""The body of a request in memory: received where the engine will read it, and given to the app as `wsgi.input`."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from server.tensors import Array

ALIGNMENT = 64
"""Bytes: what follows the JSON in a body begins at a multiple of it, so that engines take it as it is."""


class Content:
    """A body as WSGI reads it; whoever knows `take` gets it without a copy."""

    __slots__ = ("file", "view")

    def __init__(self, view: memoryview) -> None:
        """Give `view`, all of it."""
        self.view = view
        self.file: io.BytesIO | None = None

    def take(self, size: int) -> memoryview:
        """The next `size` bytes as they lie in memory, fewer where the body ended early."""
        taken, self.view = self.view[:size], self.view[size:]
        return taken

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        return self._reader().read(size)

    def readline(self, size: int = -1) -> bytes:
        """The next line."""
        return self._reader().readline(size)

    def readlines(self, hint: int = -1) -> list[bytes]:
        """All lines that are left."""
        return self._reader().readlines(hint)

    def __iter__(self) -> Iterator[bytes]:
        """Line by line."""
        return iter(self._reader())

    def _reader(self) -> io.BytesIO:
        if self.file is None:
            self.file = io.BytesIO(self.view)
        return self.file


class Arriving:
    """A body that is still being received, `size` bytes in all."""

    def __init__(self, size: int, text: int) -> None:
        """Make room. Of the body `text` bytes are JSON; what follows them is aligned."""
        # PERF: numpy, since a bytearray would be filled with zeros first.
        room: Array = np.empty(size + ALIGNMENT, np.uint8)
        start = -(room.__array_interface__["data"][0] + text) % ALIGNMENT
        self.view = room.data[start : start + size]
        self.came = 0

    def put(self, data: bytes) -> None:
        """Add what came together with the head."""
        self.view[: len(data)] = data
        self.came = len(data)

    @property
    def rest(self) -> memoryview:
        """Where the next bytes belong; empty when the body is whole."""
        return self.view[self.came :]

    def content(self) -> Content:
        """What came, as the app reads it."""
        return Content(self.view[: self.came])
