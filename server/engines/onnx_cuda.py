"""onnxruntime's CUDA provider: what it may take of a GPU, and one copy each way."""

from __future__ import annotations

import logging
import re
from contextlib import redirect_stdout
from io import StringIO

import onnxruntime as ort

from server.gpus import Allotment
from server.tensors import Array, Tensors

NAME = "CUDAExecutionProvider"

_log = logging.getLogger("gunicorn.error")

Provider = tuple[str, dict[str, str]]


def no_cuda() -> str:
    """Why onnxruntime can't use a GPU; empty if it can."""
    there = ort.get_available_providers()
    return "" if NAME in there else f"onnxruntime {ort.__version__} is a build without {NAME} (onnxruntime-gpu has it)"


def load_libraries() -> None:
    """Have CUDA's libraries found where pip has put them, and not only where the system looks, or torch has been."""
    with redirect_stdout(StringIO()) as said:  # which it prints, as a program would
        ort.preload_dlls()
    if said.getvalue():
        _log.info("onnxruntime: %s", " ".join(said.getvalue().split()))


def provider(gpu: Allotment) -> Provider:
    """The provider and its options, as onnxruntime's documentation of its "CUDA Execution Provider" has them."""
    options = {
        "device_id": "0",  # the one that this process sees
        "gpu_mem_limit": str(gpu.bytes),
        "arena_extend_strategy": "kSameAsRequested",  # else it doubles, and takes what others were to have
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # at a shape's first run, which is in warmup
        "use_tf32": "0",  # float32 is float32
    }
    return NAME, options


def no_memory(error: Exception) -> bool:
    """Whether memory of the GPU ran out, that of the arena or what CUDA and its libraries have."""
    return bool(
        re.search(r"is smaller than requested bytes|out of memory|ALLOC(ATION)?_FAILED|Failed to allocate memory", str(error))
    )


def failure(error: Exception) -> str:
    """What CUDA or one of its libraries says, where it is that which failed, and not the model; empty else."""
    found = re.search(r"\b(CUDA|CUDNN|CUBLAS) (failure|error)\b[^;]*", str(error), re.IGNORECASE)
    return found[0].strip() if found else ""


def lost(error: Exception) -> bool:
    """Whether CUDA failed in a way after which no later call succeeds (`cudaError_t`: "the process must be terminated")."""
    return bool(re.search(r"CUDA (failure|error) (214|220|700|709|71[0-9]|719|999)\b", str(error), re.IGNORECASE))


def run(session: ort.InferenceSession, names: list[str], feed: Tensors) -> list[Array]:
    """Run with inputs and outputs bound, so that each is copied once."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    answers: list[Array] = binding.copy_outputs_to_cpu()
    return answers
