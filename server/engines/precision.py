"""Half precision: whether the processor, or the GPU, has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from server.engines.engine import Precision
from server.gpus import Allotment

FLAGS: Mapping[Precision, frozenset[str]] = {
    Precision.BF16: frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    Precision.FP16: frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""What the kernel calls the instructions, on x86-64 and on arm64; one of them is enough."""


CAPABILITIES: Mapping[Precision, tuple[int, int]] = {Precision.BF16: (8, 0), Precision.FP16: (5, 3)}
"""From which of NVIDIA's compute capabilities on (CUDA C++ Programming Guide, "Arithmetic Instructions")."""


def available(asked: Precision, gpu: Allotment | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """What a model that asks for a precision runs in: that, or `FP32` where what it runs on would have to imitate it."""
    if asked is Precision.FP32:
        return asked
    if gpu:
        return asked if gpu.gpu.capability >= CAPABILITIES[asked] else Precision.FP32
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    return asked if flags & FLAGS[asked] else Precision.FP32
