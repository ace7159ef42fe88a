"""What the master holds of a model: everything of it that its workers can share."""

from __future__ import annotations

from dataclasses import dataclass

from server.engines.catalogue import engine_for
from server.engines.engine import Session
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
        """The model as a process serves it: around the master's session, or one of its own with `threads` threads."""
        session = self.session or engine_for(self.files.path).load(source(self.files, self.python), threads)
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
