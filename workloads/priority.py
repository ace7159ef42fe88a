"""Who generates the load goes first: a wait of its own for a processor would count as the server's.

Elsewhere the generator is another machine. Here it shares processors with what it measures, and two workers that answer at once
make it wait where one alone would not, which looks like the server's latency and is not.
"""

from __future__ import annotations

import os

from gevent import get_hub
from gevent.resolver.blocking import Resolver

_LOWEST = 1
"""Of the real-time priorities, each of which goes before all that have none."""


def go_first() -> bool:
    """Let this thread run as soon as it can, but nothing that it starts; whether that was allowed (`sched(7)`, CAP_SYS_NICE)."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_LOWEST))
    except OSError:
        return False
    # gevent's own resolver looks addresses up in other threads, which do not go first.
    get_hub().resolver = Resolver()  # type: ignore[assignment]  # the stubs want a base class that it has not
    return True
