"""Entry of the management process: `python -m server.management --board FD --socket FD --master PID`.

The master starts it with both descriptors inherited: the shared page, and a socket that is bound. It listens itself, and only
once it can answer, so that until then a probe is refused instead of kept waiting. Its life is the master's, unless that hands
over to a new one: then it answers who has come, and ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket

import setproctitle

import server.environment  # noqa: F401  # before anything that imports numpy
from server.exits import ConfigurationError, leave
from server.management.app import create
from server.management.heir import Heir
from server.management.listener import Listener
from server.management.memory import MemoryReader
from server.management.view import View
from server.processes import HELD, die_with_parent, release_signals
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Phase

# Ctrl-C and systemd send to the whole group; what has to be said about the end is said until the end.
IGNORED = (*HELD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGPIPE)


def main() -> None:
    """Serve until the master ends."""
    parser = argparse.ArgumentParser(prog="python -m server.management", description=__doc__)
    parser.add_argument("--board", type=int, required=True, help="descriptor of the shared page")
    parser.add_argument("--socket", type=int, required=True, help="descriptor of the bound socket")
    parser.add_argument("--master", type=int, required=True, help="process id of the master, our parent")
    parser.add_argument("--tell", type=int, help="descriptor of a pipe: another master's process answers until this one does")
    arguments = parser.parse_args()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    release_signals()
    die_with_parent(arguments.master)
    setproctitle.setproctitle("warmfork: management")
    try:
        settings = Settings.read(os.environ)
    except ConfigurationError as error:
        leave(error)
    board = Scoreboard(arguments.board)
    view = View(board, settings.ready_min, arguments.master, MemoryReader())
    listener = Listener(create(view), socket.socket(fileno=arguments.socket))
    begins = Heir(view, arguments.tell).takes_over if arguments.tell is not None else lambda: True
    listener.run(begins, lambda: board.phase is Phase.HANDED_OVER)


if __name__ == "__main__":
    main()
