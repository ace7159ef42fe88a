"""What an engine is told of a model: its file, and what `model.toml` and the operator's Python say of it."""

from __future__ import annotations

from collections.abc import Sequence

from server.engines.engine import Source
from server.engines.precision import available
from server.features.text import Text
from server.gpus import Allotment
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import TensorTable
from server.tensors import ANY, TensorSpec


def source(files: ModelFiles, python: OperatorPython, gpu: Allotment | None = None, *, graphs: bool = True) -> Source:
    """What the engine loads, to run on `gpu` if that is given, with `graphs` if `model.toml` does not forbid them.

    What clients see is the model's own where nothing stands between.
    """
    toml = files.toml
    same_inputs = None if python.preprocess or toml.text else toml.inputs
    same_outputs = None if python.postprocess else toml.outputs
    return Source(
        path=files.path,
        inputs=_specs(toml.model.inputs or same_inputs),
        outputs=_specs(toml.model.outputs or same_outputs),
        module=python.module,
        precision=available(toml.torch.precision, gpu),
        compiled=toml.torch.compile,
        gpu=gpu,
        graphs=graphs and toml.torch.graphs,
    )


def shares_compiled(source: Source, threads: int) -> bool:
    """Whether workers inherit what is compiled too, if the master runs every shape once: code for one thread, in one thread.

    Where it is for more, or for a GPU, each worker finds it on disk by itself: seconds and tens of megabytes.
    """
    return source.compiled and threads == 1 and not source.gpu


def text(files: ModelFiles) -> Text | None:
    """The tokenizer in front of the model, if there is one; raises `ConfigurationError` naming the file."""
    table = files.toml.text
    if not table or not files.tokenizer:
        return None
    return Text(files.tokenizer, table.input, longest=table.max_bytes, truncates=table.truncate, pad=table.pad)


def spec(table: TensorTable, leading: str | None = None) -> TensorSpec:
    """A tensor as `model.toml` has it; `leading` names its first axis where that is free."""
    names = [axis if isinstance(axis, str) else f"{table.name}.{place}" for place, axis in enumerate(table.shape)]
    free = [not isinstance(axis, int) or axis == ANY for axis in table.shape]
    axes = [name if is_free else None for name, is_free in zip(names, free, strict=True)]
    if leading and axes and axes[0]:
        axes[0] = leading
    return TensorSpec(
        table.name,
        table.datatype,
        tuple(axis if isinstance(axis, int) else ANY for axis in table.shape),
        tuple(axes),
    )


def _specs(tables: Sequence[TensorTable] | None) -> tuple[TensorSpec, ...] | None:
    return tuple(spec(table) for table in tables) if tables else None
