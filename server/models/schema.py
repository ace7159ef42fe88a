"""The keys of `model.toml`, declared once. An unknown key is an error that names the file, the key and the nearest known one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from server.engines.engine import Precision
from server.exits import ConfigurationError
from server.scoreboard import MAX_SHAPES
from server.tensors import DTYPES

Length = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
Lengths = Annotated[list[Length], msgspec.Meta(min_length=1, max_length=MAX_SHAPES)]
HALVES = ("FP16", "BF16")
"""Datatypes of which an answer is calculated in half precision."""
TOLERANCE, HALF_TOLERANCE = (1e-3, 1e-4), (0.02, 0.02)
"""What `rtol` and `atol` are where nothing is said."""
Inside = Annotated[str, msgspec.Meta(pattern=r"^(?!/)(?!.*(^|/)\.\.(/|$)).+$")]
"""A relative path that does not climb."""


class TensorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[inputs]]`, `[[outputs]]` as clients see them, `[[model.inputs]]`, `[[model.outputs]]` as the model has them."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=-1)] | Annotated[str, msgspec.Meta(min_length=1)]]
    """A length for each axis; -1 or a name for a free one."""


class ModelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[model]`: the model's own tensors, where neither its file says them nor `[[inputs]]` and `[[outputs]]` do."""

    inputs: list[TensorTable] | None = None
    outputs: list[TensorTable] | None = None


class TextTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[text]`: a tokenizer in front of the model."""

    tokenizer: Inside = "tokenizer.json"
    """Inside the version's folder."""
    input: Annotated[str, msgspec.Meta(min_length=1)] = "text"
    """The tensor of BYTES that clients send."""
    truncate: bool = True
    """Whether a text of more tokens than the longest bucket is cut, and not refused."""
    max_bytes: Length = 1 << 16
    """The longest text that is looked at."""
    pad: str | None = None
    """The token that fills a bucket up; what the tokenizer says if absent."""


class TorchTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[torch]`: how torch runs the model."""

    compile: bool = False
    """With `torch.compile`, once for each shape."""
    graphs: bool = True
    """On a GPU, a CUDA graph for each shape; not for a module that keeps in Python what changes from run to run."""
    precision: Precision = Precision.FP32
    """Of weights and calculation, where the processor or the GPU has it; float32 elsewhere."""
    max_difference: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """How far an output may be from float32's on any sample."""


class ModelToml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may say of a model. Every key has a default, so that a lone model file needs no `model.toml`."""

    file: Inside = "model.onnx"
    """The model, inside the version's folder."""
    versions: Annotated[list[Length], msgspec.Meta(min_length=1, max_length=16)] | None = None
    """The versions to serve; the highest on disk if absent."""
    batch_sizes: Lengths | None = None
    """The lengths of the leading axis that the model runs; absent: the leading axis is like any other."""
    axes: dict[str, Lengths] = {}
    """The lengths that each named free axis runs."""
    device: Literal["auto", "cpu"] = "auto"
    """Where it runs: as `WARMFORK_DEVICE` says, or on the processor whatever that says."""
    python: Inside | None = None
    """The operator's Python, inside the version's folder."""
    inputs: list[TensorTable] | None = None
    outputs: list[TensorTable] | None = None
    golden: list[Inside] = []
    """Samples with known answers, inside the model's folder."""
    rtol: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Relative difference that a golden answer, or a row alone and in a batch, may have."""
    atol: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Absolute difference, likewise."""
    p95_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """A bound on the 95th percentile under the synthetic load, in milliseconds."""
    model: ModelTable = ModelTable()
    text: TextTable | None = None
    torch: TorchTable = TorchTable()

    def tolerance(self, precision: Precision, datatype: str) -> tuple[float, float]:
        """How far an output of `datatype` may differ, relatively and absolutely; further where it comes of half precision."""
        half = precision is not Precision.FP32 or datatype in HALVES
        rtol, atol = HALF_TOLERANCE if half else TOLERANCE
        return rtol if self.rtol is None else self.rtol, atol if self.atol is None else self.atol

    def tensors(self) -> Iterator[tuple[str, list[TensorTable]]]:
        """Every list of tensors that there is, by its key."""
        for key, tables in (
            ("inputs", self.inputs),
            ("outputs", self.outputs),
            ("model.inputs", self.model.inputs),
            ("model.outputs", self.model.outputs),
        ):
            if tables is not None:
                yield key, tables


def read(path: Path) -> ModelToml:
    """Read one `model.toml`; raise `ConfigurationError` naming the file, the key and what it must be."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path}: {error}"
        raise ConfigurationError(message) from None
    _keys(path, table)
    try:
        parsed = msgspec.convert(table, ModelToml)
    except msgspec.ValidationError as error:
        message = f"{path}: {error}"
        raise ConfigurationError(message) from None
    _check_tensors(path, parsed)
    return parsed


def _check_tensors(path: Path, parsed: ModelToml) -> None:
    for side, tensors in parsed.tensors():
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            message = f"{path}: [[{side}]] has a name twice: {', '.join(names)}"
            raise ConfigurationError(message)
        for tensor in tensors:
            if tensor.datatype not in DTYPES:
                message = f"{path}: datatype of {tensor.name!r} must be one of {', '.join(DTYPES)}, not {tensor.datatype!r}"
                raise ConfigurationError(message)


def _keys(path: Path, table: dict[str, Any]) -> None:
    """Raise `ConfigurationError` for a key that there is not, at any depth."""
    _known(path, table, ModelToml, "")
    for key, kind in (("model", ModelTable), ("text", TextTable), ("torch", TorchTable)):
        _known(path, table.get(key), kind, f"[{key}] ")
    for prefix, tables in (("", table), ("model.", table.get("model"))):
        for key in ("inputs", "outputs"):
            tensors = tables.get(key) if isinstance(tables, dict) else None
            for tensor in tensors if isinstance(tensors, list) else ():
                _known(path, tensor, TensorTable, f"[[{prefix}{key}]] ")


def _known(path: Path, table: object, kind: type[msgspec.Struct], where: str) -> None:
    keys: dict[str, Any] = table if isinstance(table, dict) else {}
    for key in keys:
        if key not in kind.__struct_fields__:
            near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0)[0]
            message = f"{path}: unknown key {where}{key!r}; the nearest known one is {near!r}"
            raise ConfigurationError(message)
