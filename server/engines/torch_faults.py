"""What torch says when a GPU fails: that memory ran out, and whose, or that nothing can succeed any more."""

from __future__ import annotations

import re

import torch

from server.exits import GpuFullError, GpuMemoryError
from server.gpus import Allotment

UNITS = ("bytes", "KiB", "MiB", "GiB")
HALF_A_DIGIT = 0.005
"""torch rounds what it says to two."""


def out_of_memory(error: BaseException, gpu: Allotment) -> GpuMemoryError | None:
    """That memory of `gpu` ran out, with the bound, where an error or one that led to it says so; else None.

    A `GpuFullError` where the process has not used up its share: torch alone knows of that, CUDA and its libraries ask the GPU.
    """
    short = _short(error)
    if short is None:
        return None
    said = ". ".join(str(short).partition("\n")[0].split(". ")[:2])
    bound = f"{said}; {gpu.bytes >> 20} MiB of {gpu.gpu.total >> 20} MiB on {gpu.gpu.device} are a worker's"
    left = gpu.bytes - torch.cuda.memory_reserved()
    if not isinstance(short, torch.cuda.OutOfMemoryError) or 0 < _asked(short) <= left:
        return GpuFullError(f"{bound}, of which others hold what is missing")
    return GpuMemoryError(bound)


def lost() -> bool:
    """Whether the last error was one after which CUDA answers nothing in this process any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _short(error: BaseException) -> BaseException | None:
    """That of an error and those that led to it by which memory ran out; libraries say so in words of their own."""
    seen: BaseException | None = error
    while seen:
        if isinstance(seen, torch.cuda.OutOfMemoryError) or re.search(
            "CUDA error: out of memory|ALLOC(ATION)?_FAILED", str(seen)
        ):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _asked(error: BaseException) -> float:
    """How many bytes, at most, there was no room for; 0 where the error does not say."""
    found = re.search(rf"Tried to allocate ([\d.]+) ({'|'.join(UNITS)})", str(error))
    return (float(found[1]) + HALF_A_DIGIT) * 1024 ** UNITS.index(found[2]) if found else 0.0
