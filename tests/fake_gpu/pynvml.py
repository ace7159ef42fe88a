"""As much of NVIDIA's `pynvml` as we call, about the GPUs of a `Machine`; each name is theirs, handles are UUIDs."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

from tests.fake_gpu.machine import SETTING, Machine

NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    """What it raises."""


class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818 - theirs
    """There is no driver."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801, N818 - theirs
    """There is a library without a driver."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818 - theirs
    """The GPU has no such thing."""


class NVMLError_NotFound(NVMLError):  # noqa: N801, N818 - theirs
    """There is nothing at that place."""


def nvmlInit() -> None:  # noqa: N802 - theirs
    """As on a machine without a driver, where the folder is gone; or broken, where it is a file; or it hangs."""
    folder = Machine.here().folder
    while (folder / "hangs").exists():
        time.sleep(0.1)
    if folder.is_file():
        raise NVMLError(folder.read_text(encoding="ascii"))
    if not folder.exists():
        raise NVMLError_LibraryNotFound(os.environ[SETTING])


def nvmlDeviceGetCount() -> int:  # noqa: N802 - theirs
    """How many GPUs there are."""
    return len(Machine.here().devices)


def nvmlDeviceGetHandleByIndex(index: int) -> str:  # noqa: N802 - theirs
    """The GPU at an index."""
    machine = Machine.here()
    uuid = machine.devices[index].uuid
    if machine.lost(uuid):
        raise NVMLError(uuid)
    return uuid


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802 - theirs
    """The GPU of that UUID."""
    return uuid


def nvmlDeviceGetMigMode(handle: str) -> list[int]:  # noqa: N802 - theirs
    """Whether it is, and will be, in MIG mode."""
    if handle.startswith("GPU-old"):
        raise NVMLError_NotSupported
    return [int(bool(device.mig)) for device in Machine.here().devices if device.uuid == handle] * 2


def nvmlDeviceGetMaxMigDeviceCount(_handle: str) -> int:  # noqa: N802 - theirs
    """How many MIG devices it may have."""
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: str, index: int) -> str:  # noqa: N802 - theirs
    """One of those: every second place is taken."""
    (mig,) = (device.mig for device in Machine.here().devices if device.uuid == handle)
    if index % 2 or index // 2 >= len(mig):
        raise NVMLError_NotFound
    return mig[index // 2]


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802 - theirs
    """Its UUID."""
    return handle


def nvmlDeviceGetName(handle: str) -> str:  # noqa: N802 - theirs
    """Its product."""
    return f"Fake {handle}"


def nvmlDeviceGetCudaComputeCapability(handle: str) -> tuple[int, int]:  # noqa: N802 - theirs
    """What it can calculate."""
    return next(device.capability for device in Machine.here().devices if device.uuid == handle)


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:  # noqa: N802 - theirs
    """Bytes that there are, and that anybody holds."""
    machine = Machine.here()
    device = next(device for device in machine.devices if handle in (device.uuid, *device.mig))
    return SimpleNamespace(total=device.total, used=machine.used(handle))


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:  # noqa: N802 - theirs
    """Who holds how much."""
    return [SimpleNamespace(pid=pid, usedGpuMemory=count) for pid, count in Machine.here().held(handle).items()]
