"""Masters that outlive the one which started them, and whose end this process learns all the same."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Orphan:
    """A master whose parent, the master before it, has ended: this process has become its parent."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """Wait for its end; give its status."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def adopt_orphans() -> None:
    """Have this process become the parent of what its children leave behind, so that it learns how that ends."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def leave_orphans() -> None:
    """Leave them to whoever takes them, as every process does by default."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
