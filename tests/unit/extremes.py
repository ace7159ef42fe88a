"""Numbers at the ends of what each datatype holds, for whatever has to carry them."""

from __future__ import annotations

from typing import Any

import numpy as np

from server.tensors import DTYPES


def values(datatype: str) -> Any:
    """Two rows of three, at the ends of what the datatype holds."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return np.array([[b"", b"a", "\N{SNOWMAN}".encode()], [b"x" * 1000, b"a\0b", b" "]], object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, True, True]])
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        return np.array([[ends.min, ends.max, 0], [1, 2, 3]], dtype)
    return np.array([[-1.5, np.inf, 0], [3.140625, 2.0**-8, -np.inf]], np.float32).astype(dtype)
