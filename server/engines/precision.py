"""Half precision: whether the processor has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from server.engines.engine import Precision

FLAGS: Mapping[Precision, frozenset[str]] = {
    Precision.BF16: frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    Precision.FP16: frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""What the kernel calls the instructions, on x86-64 and on arm64; one of them is enough."""


def available(asked: Precision, cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """What a model that asks for a precision runs in: that, or `FP32` where the processor would have to imitate it."""
    if asked is Precision.FP32:
        return asked
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    return asked if flags & FLAGS[asked] else Precision.FP32
