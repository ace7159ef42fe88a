"""The models that are served while we measure, each in a repository of its own, made once per run."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from tests.models import dense, graph, put

Inputs = Mapping[str, npt.NDArray[Any]]

SIZES = (1, 2, 4)
BATCHES = (1, 2, 4, 8, 16, 32)
"""For a model that is asked on 32 connections."""
WIDTH = 2048
LAYERS = 32
WEIGHTS = 4 * WIDTH * WIDTH * LAYERS
"""Bytes of weights of `wide`."""
TEXT = "a man and his dog walk by the river in the rain until it is time to go home"
"""Every word is one token."""


def resnet50(folder: Path) -> Path:
    """The demo model, batches of 1, 2 and 4."""
    return _demo(folder, "resnet50")


def image(batch: int) -> Inputs:
    """What `resnet50` takes."""
    return {"image": numbers(batch, 3, 224, 224)}


def pixels(batch: int) -> Inputs:
    """The same as bytes."""
    return {"image": (256 * numbers(batch, 3, 224, 224)).astype(np.uint8)}


def embed(folder: Path) -> Path:
    """The demo model."""
    return _demo(folder, "embed")


def embed_shapes(models: Path) -> tuple[list[int], list[int]]:
    """Its batch sizes and its length buckets."""
    toml = tomllib.loads((models / "embed" / "model.toml").read_text(encoding="utf-8"))
    return toml["batch_sizes"], toml["axes"]["length"]


def texts(count: int, words: int) -> Inputs:
    """What `embed` takes: `words` words are two tokens more."""
    text = " ".join(islice(cycle(TEXT.split()), words))
    return {"text": np.array([text] * count, object)}


def small(folder: Path) -> Path:
    """`dense`: one product of 64 by 64, batches of 1, 2 and 4."""
    return once(folder / "small", lambda root: put(root, "dense", dense(), f"batch_sizes = {list(SIZES)}\n"))


def row(batch: int, width: int = 64) -> Inputs:
    """What `dense`, `products`, `tiny` and `wide` take."""
    return {"x": numbers(batch, width)}


def wide(folder: Path) -> Path:
    """`wide`: half a gigabyte of weights, one row at a time."""
    return once(folder / "wide", lambda root: put(root, "wide", dense(WIDTH, LAYERS), "batch_sizes = [1]\n"))


def products(folder: Path, *sizes: int) -> Path:
    """`products`: eight products of 2048 by 2048, 134 MB of weights that every batch reads once; batches of `sizes`."""
    toml = f"batch_sizes = {list(sizes)}\n"
    return once(folder / f"products-{sizes[-1]}", lambda root: put(root, "products", dense(WIDTH, 8), toml))


def tiny(folder: Path) -> Path:
    """`tiny`: 64 numbers in, 10 out, batches of up to 32."""
    weights = {"w": numbers(64, 10)}
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ("FP32", ["batch", 64])}, {"y": ("FP32", ["batch", 10])}, weights
    )
    return once(folder / "tiny", lambda root: put(root, "tiny", model, f"batch_sizes = {list(BATCHES)}\n"))


def spinning(folder: Path, seconds: float) -> Path:
    """`spinning`: keeps the interpreter busy for `seconds` if the first number is 13."""
    python = (
        "import time\n"
        "def preprocess(inputs):\n"
        f"    end = time.monotonic() + ({seconds} if inputs['x'][0, 0] == 13 else 0)\n"
        "    while time.monotonic() < end: pass\n"
        "    return inputs\n"
    )
    return once(folder / "spinning", lambda root: put(root, "spinning", dense(), python=python))


def _demo(folder: Path, name: str) -> Path:
    root = folder / f"demo-{name}"
    command = [sys.executable, "-m", "demo", str(root), "--only", name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program
    return root


def once(root: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` make a repository unless this run has made it; give it."""
    if not root.exists():
        write(root)
    return root


def numbers(*shape: int) -> npt.NDArray[np.float32]:
    """Floats in [0, 1), the same ones every time."""
    return np.random.Generator(np.random.PCG64(1)).random(shape, np.float32)
