"""Half precision: what the processor says that it has, and what a GPU does."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engines.engine import Precision
from server.engines.precision import available
from server.gpus import Allotment, Gpu

X86 = """processor	: 0
vendor_id	: GenuineIntel
model name	: a processor with avx512_fp16 in its name alone
flags		: fpu sse avx512f {flags} ht
vmx flags	: bf16 avx512_bf16

processor	: 1
flags		: fpu sse avx512f {flags} ht
"""
ARM = """processor	: 0
BogoMIPS	: 50.00
Features	: fp asimd {flags} evtstrm
CPU implementer	: 0x41
"""


@pytest.mark.parametrize(
    ("text", "flags", "has"),
    [
        (X86, "", ""),
        (X86, "avx512_bf16", "bf16"),
        (X86, "amx_tile amx_bf16", "bf16"),
        (X86, "avx512_fp16", "fp16"),
        (X86, "amx_bf16 avx512_bf16 avx512_fp16", "bf16 fp16"),
        (X86, "avx512_bf16x f16c", ""),
        (ARM, "", ""),
        (ARM, "bf16 i8mm", "bf16"),
        (ARM, "fphp asimdhp", "fp16"),
        (ARM, "asimdhp bf16", "bf16 fp16"),
        ("", "", ""),
        ("processor : \udcff\n", "", ""),
    ],
)
def test_what_the_processor_has(tmp_path: Path, text: str, flags: str, has: str) -> None:
    """A model runs in the precision asked for where the processor has instructions for it, and in float32 elsewhere."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_bytes(text.format(flags=flags).encode(errors="surrogateescape"))

    assert Precision.FP32 is available(Precision.FP32, cpuinfo=cpuinfo)
    for asked in (Precision.BF16, Precision.FP16):
        assert (asked if asked in has.split() else Precision.FP32) is available(asked, cpuinfo=cpuinfo)


@pytest.mark.parametrize(
    ("capability", "has"), [((5, 2), ""), ((5, 3), "fp16"), ((7, 5), "fp16"), ((8, 0), "fp16 bf16"), ((10, 0), "fp16 bf16")]
)
def test_what_a_gpu_has(tmp_path: Path, capability: tuple[int, int], has: str) -> None:
    """A model for a GPU goes by what that can calculate, whatever the processor has."""
    gpu = Allotment(Gpu("GPU-a", "Fake", 1, 0, capability), 1)
    for asked in (Precision.BF16, Precision.FP16):
        assert (asked if asked in has.split() else Precision.FP32) is available(asked, gpu, tmp_path / "missing")


def test_float32_asks_nobody(tmp_path: Path) -> None:
    """Who asks for nothing special needs no list of the processor's instructions."""
    assert Precision.FP32 is available(Precision.FP32, cpuinfo=tmp_path / "missing")


def test_this_processor() -> None:
    """The kernel's own list can be read."""
    assert available(Precision.BF16) in (Precision.BF16, Precision.FP32)
