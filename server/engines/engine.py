"""The protocol behind which every engine comes, and the ladder of sharing."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from server.tensors import Array, Tensors, TensorSpec


class Rung(StrEnum):
    """How the weights of a model are shared among the workers, best first."""

    LIVE = "live"
    """The master loads it once; every worker runs what it inherited."""
    MAPPED = "mapped"
    """Every worker loads it, its weights are pages of a file that all have mapped."""
    PRIVATE = "private"
    """Every worker loads it and holds a copy of its own."""


class Session(Protocol):
    """A model that is loaded and can run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once; every output by name. Raises `MemoryError` where memory ran out, `BadInputError` for a bad input."""


class Engine(Protocol):
    """A way to run one kind of model file."""

    platform: str
    """What the protocol's metadata calls it."""

    def check(self, path: Path) -> None:
        """Raise `ConfigurationError` naming the file and the check unless `path` is such a model, inside its folder alone.

        Called in a throw-away child alone: it may take memory.
        """

    def rungs(self, path: Path, threads: int) -> Sequence[tuple[Rung, str]]:
        """The rungs to try, best first, each with why it is not the one above (empty on `LIVE`). Called after `check`."""

    def load(self, path: Path, threads: int) -> Session:
        """Load the model to run on `threads` threads; with 1 it starts none, so that the master may do it."""
