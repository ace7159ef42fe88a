"""Golden samples: inputs whose outputs are known. Never pickle: JSON, or numpy's own format without objects."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.exits import ConfigurationError
from server.tensors import FLOATS, Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Golden:
    """One sample. Its outputs may name fewer tensors than the model gives; those are then not compared."""

    path: Path
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def load(path: Path, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Golden:
    """Read `.json` (`{"inputs": {name: nested lists}, "outputs": …}`) or `.npz` (arrays `inputs/name`, `outputs/name`).

    Raises `ConfigurationError` naming the file and the tensor for a sample that does not fit the model.
    """
    try:
        sides = _json(path) if path.suffix == ".json" else _npz(path)
        return Golden(path, _typed(sides["inputs"], inputs, every=True), _typed(sides["outputs"], outputs, every=False))
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        message = f"{path}: not a golden sample of this model: {error}"
        raise ConfigurationError(message) from None


def _json(path: Path) -> dict[str, Any]:
    sides: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return sides


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {
            side: {name.removeprefix(f"{side}/"): file[name] for name in file.files if name.startswith(f"{side}/")}
            for side in ("inputs", "outputs")
        }


def _typed(given: Mapping[str, Any], specs: Iterable[TensorSpec], *, every: bool) -> dict[str, Array]:
    known = {spec.name: spec for spec in specs}
    unknown = set(given) - set(known)
    missing = set(known) - set(given) if every else set()
    if unknown or missing or not given:
        message = f"has tensors {sorted(given)}, the model has {sorted(known)}"
        raise ValueError(message)
    return {name: _array(value, known[name]) for name, value in given.items()}


def _array(value: Any, spec: TensorSpec) -> Array:
    array = _bytes(np.asarray(value, dtype=object)) if spec.datatype == "BYTES" else _numbers(np.asarray(value), spec)
    expected = [length if axis is None else came for length, axis, came in zip(spec.shape, spec.axes, array.shape, strict=False)]
    if array.ndim != len(spec.shape) or list(array.shape) != expected:
        message = f"{spec.name} must have shape {list(spec.shape)}, has {list(array.shape)}"
        raise ValueError(message)
    return array


def _bytes(array: Array) -> Array:
    made = np.empty(array.shape, object)
    for place, item in np.ndenumerate(array):
        made[place] = item.encode() if isinstance(item, str) else bytes(item)
    return made


def _numbers(array: Array, spec: TensorSpec) -> Array:
    """The numbers in the type that the model takes; raise `ValueError` where that would change what they are."""
    kinds = "b" if spec.datatype == "BOOL" else "iuf" if spec.datatype in FLOATS else "iu"
    if array.dtype.kind not in kinds and array.dtype != spec.dtype:
        message = f"{spec.name} must be {spec.datatype}, is {array.dtype}"
        raise ValueError(message)
    made = array.astype(spec.dtype)
    if spec.datatype not in FLOATS and not (made == array).all():
        message = f"{spec.name} has numbers that {spec.datatype} cannot hold"
        raise ValueError(message)
    return made
