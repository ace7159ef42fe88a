"""What a tensor is called and shaped: the protocol's datatypes, their numpy counterparts, declared specs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""Named tensors. BYTES is an object array of `bytes`; BF16 is `ml_dtypes.bfloat16`."""

ANY = -1
"""A free axis: any length, as the protocol's metadata writes it."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
"""The Open Inference Protocol's datatypes and the numpy type that holds each."""

FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as clients see it.

    `shape` holds a length or `ANY` per axis; `axes` holds a name per axis, the same name meaning the same length,
    and None where the length is fixed.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of this tensor."""
        return DTYPES[self.datatype]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape`, not empty, may be this tensor; axes of one name are not compared."""
        if len(shape) != len(self.shape):
            return False
        return all(length and declared in (ANY, length) for declared, length in zip(self.shape, shape, strict=True))
