"""torch's types, and numpy's view of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import torch

from server.engines.engine import Precision
from server.tensors import Array

DATATYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.bfloat16: "BF16",
}
"""torch's types as the protocol calls them."""

DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in DATATYPES.items()}

HALVES: Mapping[Precision, torch.dtype] = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def view(tensor: torch.Tensor) -> Array:
    """The memory of a tensor on the processor, contiguous and without gradient, as an array; numpy has bfloat16 by ml_dtypes."""
    if tensor.dtype is torch.bfloat16:
        raw: Array = tensor.view(torch.int16).numpy()
        return raw.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array
