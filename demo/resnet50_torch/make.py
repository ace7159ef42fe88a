"""Write the model `resnet50_torch` in any of the forms that torch has for a model, with the answer that the ONNX model gave."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save
from torch import nn

from demo import resnet50
from demo.resnet50_torch.model import module

HERE = Path(__file__).parent

Form = Literal["torchscript", "export", "module"]

FILES: Mapping[Form, str] = {"torchscript": "model.pt", "export": "model.pt2", "module": "model.safetensors"}

LARGEST = 64
"""Images in a batch of the exported form, whose program holds for so many and no more."""

IMAGES = torch.zeros(2, 3, 224, 224)
"""What a program is made with. Two, since an axis of one is taken for one that is always so."""

MODEL_TOML = """\
# The network and the weights of `resnet50`, run by torch.
file = "{file}"
{python}batch_sizes = [1, 2, 4]
golden = ["golden/ramps.npz"]

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 3, 224, 224]

[[outputs]]
name = "scores"
datatype = "FP32"
shape = [-1, 1000]
"""


def write(folder: Path) -> None:
    """Fill `folder` with the model as TorchScript."""
    write_form(folder, "torchscript")


def write_form(folder: Path, form: Form) -> None:
    """Fill `folder` with the model as a program (`torchscript`, `export`) or as weights beside `model.py` (`module`)."""
    version = folder / "1"
    version.mkdir()
    # In the folder, so that it goes with it when this is interrupted.
    with TemporaryDirectory(dir=folder) as twin:
        resnet50.write(Path(twin))
        network = _network(Path(twin) / "1/model.onnx")
        shutil.copytree(Path(twin) / "golden", folder / "golden")
    file = version / FILES[form]
    if form == "torchscript":
        _trace(network, file)
    elif form == "export":
        _export(network, file)
    else:
        file.write_bytes(save(network.state_dict()))
        shutil.copyfile(HERE / "model.py", version / "model.py")
    python = 'python = "model.py"\n' if form == "module" else ""
    (folder / "model.toml").write_text(MODEL_TOML.format(file=file.name, python=python), encoding="utf-8")


def _network(path: Path) -> nn.Module:
    """Make the network with the weights of an ONNX file; every name and shape must be the same in both."""
    tensors = onnx.load(path).graph.initializer
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in tensors}
    with torch.device("meta"):
        network = module()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _trace(network: nn.Module, file: Path) -> None:
    """Write TorchScript.

    Traced, since a scripted one is other bytes in each process: sets of constants, in any order. Not frozen: nothing is left to
    fold, and it would run as fast without the names of its weights.
    """
    torch.jit.save(torch.jit.trace(network, IMAGES), file)  # type: ignore[no-untyped-call]


def _export(network: nn.Module, file: Path) -> None:
    """Write a program of `torch.export`, its batch axis free."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    program = torch.export.export(network, (), {"image": IMAGES}, dynamic_shapes={"image": {0: batch}})
    program.example_inputs = None  # they would be pickled
    torch.export.save(program, file)
