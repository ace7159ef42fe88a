"""Models without an engine, for unit tests of what is around one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from server.gpus import Allotment
from server.models.model import Model
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import ModelToml
from server.tensors import ANY, Array, Tensors, TensorSpec

Run = Callable[[Tensors], Mapping[str, Array]]


@dataclass
class FakeSession:
    """A session that runs a Python function."""

    answer: Run
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: list[Tensors] = field(default_factory=list)
    settled: bool = False
    overlaps: bool = False
    graphs: bool = False
    device_ms: float = 0.0

    def enter(self, threads: int, gpu: Allotment | None = None) -> None:
        """Nothing: a function has the threads of whoever calls it."""

    def settle(self) -> None:
        """Note it."""
        self.settled = True

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Note the inputs, then give what the function gives."""
        self.runs.append(inputs)
        return dict(self.answer(inputs))


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as `.npz`; numpy's stubs know no names with a slash."""
    np.savez(path, **arrays)


def rows(name: str, datatype: str = "FP32", width: int = 3) -> TensorSpec:
    """A tensor of shape [n, width]."""
    return TensorSpec(name, datatype, (ANY, width), ("n", None))


def echo(inputs: Tensors) -> dict[str, Array]:
    """Give `x` back as `y`."""
    return {"y": inputs["x"]}


def model(  # noqa: PLR0913 - a test names the one or two that it is about
    answer: Run = echo,
    inputs: tuple[TensorSpec, ...] = (rows("x"),),
    outputs: tuple[TensorSpec, ...] = (rows("y"),),
    *,
    name: str = "m",
    folder: Path = Path("models/m/1"),
    python: OperatorPython | None = None,
    index: int = 0,
    batched: bool = True,
    remembered: tuple[tuple[int, ...], ...] = (),
    **toml: Any,
) -> Model:
    """A model around `answer` that runs batches of 1, 2 and 4 rows; `toml` is what its `model.toml` says."""
    declared = ModelToml(**{"batch_sizes": [1, 2, 4], **toml})
    return Model(
        files=ModelFiles(name, int(folder.name), folder, declared),
        python=python or OperatorPython(),
        session=FakeSession(answer, inputs, outputs),
        platform="fake",
        index=index,
        batched=batched,
        remembered=remembered,
    )
