"""Which processes are living children of the master."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int, parent: int) -> bool:
    """Whether `pid` exists, has not ended and is a child of `parent`: an id that was given to someone else is not ours."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The name stands in parentheses and may hold anything, parentheses and spaces included.
    state, ppid = stat.rpartition(b")")[2].split()[:2]
    return state not in (b"Z", b"X") and int(ppid) == parent
