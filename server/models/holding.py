"""What the master holds of a model: everything of it that its workers can share."""

from __future__ import annotations

from dataclasses import dataclass

from server.engines.catalogue import engine_for
from server.engines.engine import Session
from server.exits import ConfigurationError
from server.features.text import Text
from server.models.finding import Finding
from server.models.model import Model
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles, Stamp
from server.models.shapes import Shape
from server.models.source import source


@dataclass(frozen=True)
class Holding:
    """One version of one model in the master; a worker opens it."""

    files: ModelFiles
    python: OperatorPython
    text: Text | None
    session: Session | None
    """The live session; None on the lower rungs, where each worker loads its own."""
    finding: Finding
    index: int
    """Where its counters stand in a slot of the scoreboard."""
    stamp: Stamp = ()
    """Of the files that it was loaded from."""
    remembered: tuple[Shape, ...] = ()
    met: tuple[Shape, ...] = ()
    """All shapes that clients had met cold when it was loaded; if there are others by the next reload, it is built anew."""
    kept_from: int = 0
    """The generation that serves the same already, whose workers know how long each shape takes; 0 where it was loaded anew."""

    def open(self, threads: int) -> Model:
        """The model as a process serves it: around the master's session, or one of its own with `threads` threads.

        Raises `ConfigurationError` if that would be another: the files are no longer those that were tried.
        """
        session = self.session
        if session is None:
            self._same()
            session = engine_for(self.files.path).load(source(self.files, self.python), threads)
        session.enter(threads)
        return Model(
            files=self.files,
            python=self.python,
            text=self.text,
            session=session,
            platform=self.finding.platform,
            index=self.index,
            batched=self.finding.batched,
            remembered=self.remembered,
        )

    def _same(self) -> None:
        """What lies where the engine reads must be what was tried, but for another link or right; all else is in memory."""
        try:
            now = {entry[:-1] for entry in self.files.stamp()}
        except OSError:
            now = set()
        here, held = f"{self.files.folder}/", (str(self.files.python), str(self.files.tokenizer))
        for path, *rest in sorted(entry[:-1] for entry in self.stamp):
            if path.startswith(here) and path not in held and (path, *rest) not in now:
                message = f"{path}: changed since it was tried; send HUP to have it tried, or put the old one back"
                raise ConfigurationError(message)
