"""NVML, asked by processes that need not be fit to fork: those that use CUDA, and `python -m server.nvml`.

That one tells the master, and an operator, what NVML says of the machine.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from server.gpus import Gpu
from server.processes import die_with_parent


def used(gpu: Gpu) -> int:
    """Bytes of a GPU that anybody holds now. For a process that may use CUDA: it asks NVML by itself."""
    nvml = _nvml()
    nvml.nvmlInit()
    return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)).used)


def held(gpu: Gpu) -> int:
    """Bytes of a GPU that this process holds; 0 where NVML can't tell (in a container, where processes have other numbers)."""
    nvml = _nvml()
    try:
        nvml.nvmlInit()
        running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    except nvml.NVMLError:  # not supported, or not permitted
        return 0
    return next((int(each.usedGpuMemory or 0) for each in running if each.pid == os.getpid()), 0)


def _nvml() -> Any:
    return importlib.import_module("pynvml")  # not where it is not wanted: the master never asks by itself


def _main() -> None:
    die_with_parent(os.getppid())
    nvml = _nvml()
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):  # no driver, no GPU
        sys.stdout.write("[]\n")
        return
    except nvml.NVMLError as error:
        sys.exit(str(error))
    found = [list(_at(nvml, index)) for index in range(nvml.nvmlDeviceGetCount())]
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


def _at(nvml: Any, index: int) -> Iterator[Gpu]:
    """The GPU at an index, or its MIG devices; nothing of one that has fallen off the bus: the others can serve."""
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        yield from [_gpu(nvml, each, gpu) for each in _devices(nvml, gpu)]
    except nvml.NVMLError as error:
        sys.stderr.write(f"GPU {index}: {error}\n")


def _devices(nvml: Any, gpu: Any) -> Iterator[Any]:
    """The handle of a GPU, or of each MIG device of one that is in MIG mode and then runs nothing by itself."""
    try:
        mig = nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:
        mig = False
    if not mig:
        yield gpu
        return
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        with suppress(nvml.NVMLError_NotFound):  # places are numbered, taken or not
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)


def _gpu(nvml: Any, handle: Any, gpu: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    capability = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
    return Gpu(nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle), memory.total, memory.used, tuple(capability))


if __name__ == "__main__":
    _main()
