"""Which line of the operator's Python began a thread: seen line by line while it runs, in a trial alone."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from server.fork_safety import fork_safe
from server.models.repository import ModelFiles


class Witness:
    """Remembers the lines of one file after which there were more threads, those that have ended again left out."""

    def __init__(self, path: Path) -> None:
        """Watch the file at `path`."""
        self.path = str(path)
        self.threads = _threads()
        self.begun: list[str] = []
        """A line for each thread that came and stayed."""

    def __str__(self) -> str:
        """Where the last thread that is still there was begun; empty if none of this file's lines did it."""
        return self.begun[-1] if self.begun else ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is inside. Costs a call for each call of a Python function, and a look at each line of the file."""
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        """Follow the frames of the file, and no others."""
        if frame.f_code.co_filename != self.path:
            return None
        line = frame.f_lineno
        if frame.f_back and frame.f_back.f_code.co_filename == self.path:
            self._look(frame.f_back.f_lineno)  # whatever that line has done before this call

        def follow(frame: FrameType, _event: str, _argument: Any) -> Any:
            nonlocal line
            self._look(line)  # an event comes before its line runs, so it is the line before that is to blame
            line = frame.f_lineno
            return follow

        return follow

    def _look(self, line: int) -> None:
        more = _threads() - self.threads
        del self.begun[max(more, 0) :]
        if more > len(self.begun):
            source = linecache.getline(self.path, line).strip()
            self.begun += [f"{self.path}:{line}: {source}"] * (more - len(self.begun))


@contextmanager
def watched(culprit: str, files: ModelFiles) -> Iterator[None]:
    """A step that must leave the process fit to fork, and may run the operator's Python: its lines are watched."""
    if files.python is None:
        with fork_safe(culprit):
            yield
        return
    witness = Witness(files.python)
    with fork_safe(culprit, witness), witness.watching():
        yield


def _threads() -> int:
    """How many threads this process has, native ones included: the kernel counts them as links of a folder."""
    return os.stat("/proc/self/task").st_nlink - 2  # noqa: PTH116 - looked at for every line
