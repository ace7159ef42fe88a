"""The models that torch runs while we measure, made without torch in this process: it would share the pages that we count."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from safetensors.numpy import save_file

from bench.repository import LAYERS, SIZES, WIDTH, embed, numbers, once, tiny

Form = Literal["torchscript", "export", "module"]

FORMS: tuple[Form, ...] = ("torchscript", "export", "module")
COMPILED_SIZES = (1, 4)
COMPILED_LENGTHS = (32,)
WRITE_FORM = (
    "import pathlib, sys; from demo.resnet50_torch.make import write_form; write_form(pathlib.Path(sys.argv[1]), sys.argv[2])"
)

DENSE = """\
file = "model.safetensors"
python = "model.py"
batch_sizes = [1]

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, {inputs}]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, {outputs}]
"""
CHAIN = """\
import torch


class Chain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear({inputs}, {outputs}, bias=False) for _ in range({layers}))

    def forward(self, x):
        for layer in list(self.layers)[: 1 if x[0, 0] > 1 else None]:
            x = layer(x)
        return x


def module():
    return Chain()
"""


def resnet50(folder: Path, form: Form) -> Path:
    """The network and the weights of `resnet50` in one of torch's forms, batches of 1 and 2."""

    def write(root: Path) -> None:
        made = root / "resnet50_torch"
        made.mkdir(parents=True)
        subprocess.run([sys.executable, "-c", WRITE_FORM, made, form], check=True)  # noqa: S603 - our own program
        _set(made / "model.toml", "batch_sizes", str(list(SIZES)))

    return once(folder / f"resnet50-{form}", write)


def wide(folder: Path) -> Path:
    """`wide`: half a gigabyte of weights, one row at a time; a row whose first number is above 1 runs the first layer alone."""
    return once(folder / "wide-torch", lambda root: _chain(root / "wide", WIDTH, WIDTH, LAYERS))


def both_tiny(folder: Path) -> Path:
    """`tiny` of ONNX, and `tiny_torch` beside it, which is the same for torch."""

    def write(root: Path) -> None:
        shutil.copytree(tiny(folder), root)
        _chain(root / "tiny_torch", 64, 10, 1)

    return once(folder / "both-tiny", write)


def compiled(folder: Path, *, compiles: bool) -> Path:
    """`embed` in few shapes, with `torch.compile` or without."""

    def write(root: Path) -> None:
        shutil.copytree(embed(folder), root)
        toml = root / "embed" / "model.toml"
        _set(toml, "batch_sizes", str(list(COMPILED_SIZES)))
        _set(toml, "axes.length", str(list(COMPILED_LENGTHS)))
        _set(toml, "golden", '["golden/short.json", "golden/unicode.json"]')  # the other one would be cut off earlier
        with toml.open("a", encoding="utf-8") as file:
            file.write(f"\n[torch]\ncompile = {str(compiles).lower()}\n")

    return once(folder / f"embed-{'compiled' if compiles else 'plain'}", write)


def _chain(model: Path, inputs: int, outputs: int, layers: int) -> None:
    version = model / "1"
    version.mkdir(parents=True)
    (model / "model.toml").write_text(DENSE.format(inputs=inputs, outputs=outputs), encoding="utf-8")
    (version / "model.py").write_text(CHAIN.format(inputs=inputs, outputs=outputs, layers=layers), encoding="utf-8")
    weight = numbers(outputs, inputs) / inputs
    save_file({f"layers.{layer}.weight": weight for layer in range(layers)}, version / "model.safetensors")


def _set(path: Path, key: str, value: str) -> None:
    content, found = re.subn(rf"^{key} = .*$", f"{key} = {value}", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found != 1:
        message = f"{path} has {key} {found} times, not once"
        raise ValueError(message)
    path.write_text(content, encoding="utf-8")
