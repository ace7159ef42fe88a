"""The models that are served while we measure, each in a repository of its own, made once per run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import helper

from tests.models import dense, graph, put

Inputs = Mapping[str, npt.NDArray[np.float32]]

SIZES = (1, 2, 4)
WIDTH = 2048
LAYERS = 32
WEIGHTS = 4 * WIDTH * WIDTH * LAYERS
"""Bytes of weights of `wide`."""


def resnet50(folder: Path) -> Path:
    """The demo model, batches of 1, 2 and 4."""
    root = folder / "resnet50"
    command = [sys.executable, "-m", "demo", str(root), "--only", "resnet50"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program
    return root


def image(batch: int) -> Inputs:
    """What `resnet50` takes."""
    return {"image": _numbers(batch, 3, 224, 224)}


def small(folder: Path) -> Path:
    """`dense`: one product of 64 by 64, batches of 1, 2 and 4."""
    return _once(folder / "small", lambda root: put(root, "dense", dense(), f"batch_sizes = {list(SIZES)}\n"))


def row(batch: int, width: int = 64) -> Inputs:
    """What `dense`, `tiny` and `wide` take."""
    return {"x": _numbers(batch, width)}


def wide(folder: Path) -> Path:
    """`wide`: half a gigabyte of weights, one row at a time."""
    return _once(folder / "wide", lambda root: put(root, "wide", dense(WIDTH, LAYERS), "batch_sizes = [1]\n"))


def tiny(folder: Path) -> Path:
    """`tiny`: 64 numbers in, 10 out."""
    weights = {"w": _numbers(64, 10)}
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ("FP32", ["batch", 64])}, {"y": ("FP32", ["batch", 10])}, weights
    )
    return _once(folder / "tiny", lambda root: put(root, "tiny", model))


def spinning(folder: Path, seconds: float) -> Path:
    """`spinning`: keeps the interpreter busy for `seconds` if the first number is 13."""
    python = (
        "import time\n"
        "def preprocess(inputs):\n"
        f"    end = time.monotonic() + ({seconds} if inputs['x'][0, 0] == 13 else 0)\n"
        "    while time.monotonic() < end: pass\n"
        "    return inputs\n"
    )
    return _once(folder / "spinning", lambda root: put(root, "spinning", dense(), python=python))


def _once(root: Path, write: Callable[[Path], object]) -> Path:
    if not root.exists():
        write(root)
    return root


def _numbers(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.Generator(np.random.PCG64(1)).random(shape, np.float32)
