"""The share of the processors that this server's session has among all, which may be lowered, and raised again without root.

Linux shares them among sessions first, and then among the threads of each (`autogroup`, sched(7)). So a thread of idle priority
stands back behind threads of its own session alone: a server that starts beside another, each in a session of its own, does so as
a whole. Not so where cgroups share the processors (containers): there whoever starts it says how much it gets.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/proc/self/autogroup")
_LOWEST = 19
_PATIENCE = 1.0
"""Seconds. Of all users but root together the kernel takes ten changes a second."""


def stand_back() -> None:
    """Have the session that this process leads run behind all others, until `stand_up`. Nothing where it leads none."""
    if _leads() and _nice() == 0:
        _set(_LOWEST)


def stand_up() -> None:
    """Take part like everybody again."""
    if _leads() and _nice() == _LOWEST:
        _set(0)


def _leads() -> bool:
    """Whether no other program's processes are in this session: what starts us from a shell or a script may have some."""
    return os.getsid(0) == os.getpid()


def _nice() -> int | None:
    """The nice value of the session; None where the kernel has none."""
    with suppress(OSError, ValueError):
        return int(_GROUP.read_text(encoding="ascii").rpartition(" ")[2])
    return None


def _set(nice: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            _GROUP.write_text(str(nice), encoding="ascii")
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a sandbox that refuses this
            return
        else:
            return
