"""USR2: a new master, of new code, beside the one that serves. It takes over when it is warm; if it fails, the old one stays.

The new one inherits both sockets and one end of a pipe, and says a line there: `doing <what>`, `failed <why>`, and, once its
generation has opened and its management process answers, `warm`; `failed` takes that back. Nothing else passes between two
versions of the code.
"""

from __future__ import annotations

import logging
import os

from server.master.predecessor import Predecessor
from server.master.successor import Successor
from server.master.words import Words
from server.scoreboard import Scoreboard
from server.settings import Settings
from server.states import Phase

_log = logging.getLogger("gunicorn.error")


class HandOver:
    """Who serves: this master, the one before it, or the one after it."""

    def __init__(self, board: Scoreboard, settings: Settings, words: Words, predecessor: Predecessor | None) -> None:
        """Begin with `predecessor`, where that has started this one, and nobody after it."""
        self.board = board
        self.words = words
        self.predecessor = predecessor
        self.successor = Successor(settings, words)
        self.deferred = False
        """Whether a new master was asked for during a reload: it starts after that, so that memory never holds three of all."""
        self.reload_due = False
        """Whether a reload was asked for that waits for the master before this one to end."""

    @property
    def beside(self) -> Predecessor | None:
        """The master that started this one, while it lives."""
        return self.predecessor if self.predecessor and not self.predecessor.gone else None

    @property
    def backed(self) -> bool:
        """Whether that one serves on if this one stops."""
        beside = self.beside
        return beside is not None and not beside.leaving

    @property
    def others_serve(self) -> bool:
        """Whether another master's workers take from the same sockets, and serve on when this one stops."""
        return self.backed or (self.board.phase is Phase.HANDED_OVER and not self.successor.ending)

    def say(self, word: str, what: str) -> None:
        """Tell whoever has started this one; see `Predecessor`. Of several reasons why it `failed` the first counts."""
        if self.predecessor:
            self.predecessor.say(word, what)

    def may_begin(self, *, draining: bool, busy: bool) -> bool:
        """Whether a new master may be started now; why not goes into the log. While `busy` with a reload it is put off."""
        self.deferred = False
        if os.getpid() == 1 or not os.getppid():
            why = "this master was started from outside its container, whose end its own may be: start a new one beside it"
        elif self.successor.pid:
            why = f"a new master ({self.successor.pid}) is under way"
        elif beside := self.beside:
            why = f"the master before this one ({beside.pid}) has not ended yet"
        elif draining:
            why = "the server is going away"
        elif busy:
            _log.info("A reload is under way; the new master starts after it")
            self.deferred = True
            return False
        else:
            return True
        self.refuse(why)
        return False

    def refuse(self, why: str) -> None:
        """Say why no new master was started."""
        line = f"USR2 was refused: {why}"
        _log.error("%s", line)
        self.words.hand_over_refused = line
        self.words.publish()

    def defer_reload(self) -> bool:
        """Put a reload off, if a new master shall do it, or the one before this one is still to end; whether it was."""
        if self.successor.take_reload():
            _log.info("A new master is under way; the reload is left to it")
            return True
        self.reload_due = self.beside is not None
        if self.reload_due:
            _log.info("The reload waits for the master before this one to end")
        return self.reload_due

    def take_reload(self) -> bool:
        """Take one that has waited for that end, and is due now; whether there is one."""
        due = self.reload_due and not self.beside
        if due:
            self.reload_due = False
        return due

    def listen(self) -> bool:
        """Hear the new master, and let it serve once it is warm; whether there is one that does not, so that this one serves."""
        self.successor.listen()
        if not self.successor.warm or self.successor.ending:
            return bool(self.successor.pid)
        if self.board.phase is not Phase.HANDED_OVER:
            _log.info("The new master (%d) serves; this one leaves", self.successor.pid)
            self.board.enter(Phase.HANDED_OVER)
        self.successor.catch_up()
        return False

    def complete(self) -> bool:
        """Whether the new master serves, and has been told all that it had missed. It may have been told to end just now."""
        self.successor.listen()
        return self.successor.warm and not self.successor.missed

    def let_go(self) -> None:
        """In a worker: close what is the masters' alone."""
        self.successor.let_go()
        if self.predecessor:
            os.close(self.predecessor.pipe)
