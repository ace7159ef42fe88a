"""What the master holds of a model: everything of it that its workers can share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.engines.catalogue import engine_for
from server.engines.engine import Rung, Session
from server.exits import ConfigurationError
from server.features.text import Text
from server.gpus import Allotment
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

    @property
    def on_gpu(self) -> bool:
        """Whether its workers run it on GPUs. The master never opens such a one: it holds the weights alone."""
        return self.finding.device == "cuda"

    def open(self, threads: int, gpu: Allotment | None = None) -> Model:
        """The model as a process serves it: around the master's session, or one of its own with `threads` threads.

        On `gpu`, if it is one for GPUs. Raises `ConfigurationError` if that would be another model: the files are no longer those
        that were tried.
        """
        session, gpu = self.session, gpu if self.on_gpu else None
        if session is None:
            self._same()
            session = engine_for(self.files.path).load(source(self.files, self.python, gpu, graphs=self.finding.graphs), threads)
        session.enter(threads, gpu)
        return Model(
            files=self.files,
            python=self.python,
            text=self.text,
            session=session,
            platform=self.finding.platform,
            index=self.index,
            batched=self.finding.batched,
            precision=self.finding.precision,
            remembered=self.remembered,
        )

    def _same(self) -> None:
        """What the engine reads must have the size and time of what was tried; inodes change by themselves on some mounts."""
        for name, _device, _inode, *then, _changed in self.stamp:
            path = Path(name)
            beside = path.parent == self.files.folder and path not in (self.files.python, self.files.tokenizer)
            if path != self.files.path and not (beside and self.finding.rung == Rung.MAPPED):  # whose weights may lie beside it
                continue
            try:
                now = [path.stat().st_size, path.stat().st_mtime_ns]
            except OSError:
                now = []
            if then != now:
                message = f"{path}: changed since it was tried; send HUP to have it tried, or put the old one back"
                raise ConfigurationError(message)
