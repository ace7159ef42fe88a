"""The protocol behind which every engine comes, and the ladder of sharing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from server.gpus import Allotment
from server.tensors import Array, Tensors, TensorSpec

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""torch's own setting for where compiled code lies."""


class Rung(StrEnum):
    """How the weights of a model are shared among the workers, best first."""

    LIVE = "live"
    """The master loads it once; every worker runs what it inherited."""
    MAPPED = "mapped"
    """Every worker loads it, its weights are pages of a file that all have mapped."""
    PRIVATE = "private"
    """Every worker loads it and holds a copy of its own."""


class Precision(StrEnum):
    """What a model calculates with."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class Source:
    """What an engine loads: a file, and what is said of it elsewhere."""

    path: Path
    inputs: tuple[TensorSpec, ...] | None = None
    """The model's own tensors as `model.toml` has them; None where it leaves them to the file."""
    outputs: tuple[TensorSpec, ...] | None = None
    module: Callable[[], Any] | None = None
    """The operator's own: makes the network that the file has the weights of."""
    precision: Precision = Precision.FP32
    compiled: bool = False
    """Whether it is to be compiled for each shape."""
    gpu: Allotment | None = None
    """Where it is to run; None: on the processor."""
    graphs: bool = True
    """Whether its shapes may be recorded as CUDA graphs there."""


class Session(Protocol):
    """A model that is loaded and can run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def overlaps(self) -> bool:
        """Whether another device does the work, so that the processor may read and decode meanwhile."""

    @property
    def graphs(self) -> bool:
        """Whether its runs in shapes that are warm are replayed as CUDA graphs."""

    @property
    def device_ms(self) -> float:
        """How long that took for the last run; 0 where there is none, or it does not say."""

    def enter(self, threads: int, gpu: Allotment | None = None) -> None:
        """Begin to run it in this process, on `threads` threads or a GPU; called once in each, before its first run there.

        Who has a `gpu` sees no other, and forks no more. Raises `ModelError` where that has no room for the model.
        """

    def settle(self) -> None:
        """Every shape is warm in this process: a shape that comes now is cold, and must cost no more than its run."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once; every output by name. Raises `MemoryError` where memory ran out, `BadInputError` for a bad input.

        Of a GPU's memory that is a `GpuMemoryError`.
        """


class Engine(Protocol):
    """A way to run one kind of model file."""

    platform: str
    """What the protocol's metadata calls it."""

    def no_gpu(self, path: Path) -> str:
        """Say why it can't run the model at `path` on a GPU, whichever there are; empty if it can. Asks no driver."""

    def check(self, source: Source) -> None:
        """Raise `ConfigurationError` naming the file and the check unless it is such a model, inside its folder alone.

        Called in a throw-away child alone: it may take memory.
        """

    def rungs(self, source: Source, threads: int) -> Sequence[tuple[Rung, str]]:
        """The rungs to try, best first, each with why it is not the one above (empty on `LIVE`). Called after `check`."""

    def load(self, source: Source, threads: int) -> Session:
        """Load the model to run on `threads` threads; with 1 it starts none, so that the master may do it."""
