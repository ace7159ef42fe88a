"""The share of the processors that this server's session (setsid(2)) has among all: to be lowered, and raised again without root.

Linux shares them among sessions first, and then among the threads of each (`autogroup`, sched(7)). So a thread of idle priority
stands back behind threads of its own session alone: a server that starts beside another, each in a session of its own, does so as
a whole. Not so where cgroups share the processors (containers): there whoever starts it says how much it gets.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GROUP = Path("/proc/self/autogroup")
_LOWEST = 19


def stand_back() -> None:
    """Have the session that this process leads run behind all others, until `stand_up`. Nothing where it leads none."""
    with suppress(OSError):  # an older kernel, a sandbox
        if _leads() and _nice() == 0:
            _set(_LOWEST)


def stand_up() -> bool:
    """Take part like everybody again. False where that is to be tried again: the kernel takes ten a second of all but root."""
    try:
        if _leads() and _nice() == _LOWEST:
            _set(0)
    except (FileNotFoundError, PermissionError):  # there was nothing to take back
        return True
    except OSError:
        return False
    return True


def _leads() -> bool:
    """Whether this process began it: one that a shell or a script began has other programs in it."""
    return os.getsid(0) == os.getpid()


def _nice() -> int | None:
    """The nice value of the session; None where it has none."""
    with suppress(ValueError):
        return int(_GROUP.read_text(encoding="ascii").rpartition(" ")[2])
    return None


def _set(nice: int) -> None:
    _GROUP.write_text(str(nice), encoding="ascii")
