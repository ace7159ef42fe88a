"""Torch models and tokenizers on disk: what is wrong is refused by file and check, and nothing in it is ever executed."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_safetensors

from server.engines.engine import Precision
from server.engines.precision import available
from tests.models import BATCHED
from tests.server import Server
from tests.torch_models import (
    TENSORS,
    answer,
    changed,
    content,
    pickled,
    pickled_weight,
    put_text,
    put_torch,
    saved,
    state,
)

GOOD = {"x": ("FP32", [[1, 2, 3]])}


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    file: str
    spoil: Callable[[Path], bytes]
    """The file's content; whoever executes what is in it makes the folder that is given."""
    line: str
    """What the log says after the file's name."""
    toml: str = BATCHED + TENSORS
    status: int = 78


def _entry(file: str, wanted: str, data: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    """A good archive, one entry of which is `data`."""
    return lambda trap: changed(content(file), lambda entry, old: data(trap) if entry == wanted else old)


def _sample_inputs(trap: Path) -> bytes:
    return changed(content("model.pt2"), lambda entry, old: saved(trap) if "sample_inputs" in entry else old)


def _expression(trap: Path) -> bytes:
    """A size in the graph is an expression, which torch has evaluated by sympy, which has it evaluated by Python."""
    evil = f"__import__('os').mkdir('{trap}') or Symbol('".encode()
    return changed(content("model.pt2"), lambda entry, old: old.replace(b"Symbol('", evil) if entry.endswith(".json") else old)


def _target(trap: Path) -> bytes:
    """The function of a node is looked up by its dotted name."""
    node = (
        f'{{"target": "torch.os.mkdir", "inputs": [{{"name": "", "arg": {{"as_string": "{trap}"}}, "kind": 1}}], "outputs": [],'
    )
    begin = b'"nodes": ['
    evil = begin + f'{node} "metadata": {{}}, "is_hop_single_tensor_return": null, "name": "evil"}}, '.encode()
    return changed(content("model.pt2"), lambda entry, old: old.replace(begin, evil) if entry.endswith(".json") else old)


def _weights(kind: str, **change: torch.Tensor | None) -> Callable[[Path], bytes]:
    """A state dict with some tensors changed, added or, by None, left out."""
    given = {**state(), **{name.replace("_", "."): tensor for name, tensor in change.items()}}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}

    def write(_trap: Path) -> bytes:
        if kind == ".safetensors":
            return to_safetensors(tensors)
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        return buffer.getvalue()

    return write


def _half(file: str) -> Callable[[Path], bytes]:
    return lambda _trap: content(file)[: len(content(file)) // 2]


def _whole_module(_trap: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(3, 2), buffer)
    return buffer.getvalue()


MISFITS: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"layer_bias": None}, "tensor 'layer.bias' is missing"),
    "extra": ({"other": torch.zeros(2)}, "tensor 'other' is not of this module"),
    "misshapen": ({"layer_weight": torch.zeros(2, 4)}, r"tensor 'layer.weight' must have shape \[2, 3\], has \[2, 4\]"),
}
PRECISE = f'{BATCHED}{TENSORS}[torch]\nprecision = "bf16"\nmax_difference = 1e-9\n'

FAULTS: dict[str, Fault] = {
    "pt-pickle": Fault("model.pt", pickled, "not TorchScript: no zip archive; a pickle is never loaded"),
    "pt-saved": Fault("model.pt", saved, "not TorchScript: it holds no code"),
    "pt-data": Fault("model.pt", _entry("model.pt", "data.pkl", pickled), "not TorchScript: "),
    "pt-constants": Fault("model.pt", _entry("model.pt", "constants.pkl", pickled), "not TorchScript: "),
    "pt-truncated": Fault("model.pt", _half("model.pt"), "not TorchScript: "),
    "pth-pickle": Fault("model.pth", pickled, "not a state dict: "),
    "pth-saved": Fault("model.pth", saved, "not a state dict: it holds more than tensors, and a pickle is never executed"),
    "pth-whole-module": Fault("model.pth", _whole_module, "not a state dict: it holds more than tensors"),
    "pth-truncated": Fault("model.pth", _half("model.pth"), "not a state dict: "),
    "pt2-pickle": Fault("model.pt2", pickled, "not a program of torch.export: "),
    "pt2-weight": Fault("model.pt2", pickled_weight, "'layer.weight' is stored as a pickle, which is never loaded"),
    "pt2-object": Fault(
        "model.pt2",
        lambda trap: changed(content("model.pt2"), lambda _, old: old, {"data/constants/opaque_obj_0": pickled(trap)}),
        "holds 'data/constants/opaque_obj_0', which is not a graph or a plain tensor",
    ),
    "pt2-sample-inputs": Fault("model.pt2", _sample_inputs, "its sample inputs are a pickle of more than tensors"),
    "pt2-expression": Fault("model.pt2", _expression, "its graph holds the expression .*, and is never evaluated"),
    "pt2-target": Fault("model.pt2", _target, "its graph calls 'torch.os.mkdir'"),
    "pt2-truncated": Fault("model.pt2", _half("model.pt2"), "not a program of torch.export: "),
    "pt2-graph": Fault("model.pt2", _entry("model.pt2", "models/model.json", lambda _: b"{}"), "not a program of torch.export"),
    **{
        f"{kind[1:]}-{name}": Fault(f"model{kind}", _weights(kind, **change), line)
        for name, (change, line) in MISFITS.items()
        for kind in (".pth", ".safetensors")
    },
    "safetensors-truncated": Fault("model.safetensors", _half("model.safetensors"), "not a whole safetensors file"),
    "safetensors-pickle": Fault("model.safetensors", pickled, "not a whole safetensors file"),
}
"""By name, which is the name of the model as well."""

AT_START = (
    *("pt-pickle", "pt-saved", "pt-data", "pt-constants", "pth-pickle", "pth-saved", "pt2-weight", "pt2-sample-inputs"),
    *("pt2-expression", "pth-missing", "safetensors-missing", "safetensors-truncated"),
)
"""Those that a first start meets as well: whatever would be executed, and one of each other kind."""


def _spoiled(models: Path, name: str) -> str:
    """Write the model `name` with its fault; give the line that the log must have."""
    fault = FAULTS[name]
    folder = put_torch(models, name, fault.file, fault.toml)
    (folder / fault.file).write_bytes(fault.spoil(models.parent / "sprung"))
    return rf"\S*/{name}/1/{fault.file.replace('.', '[.]')}: .*{fault.line}"


@pytest.mark.parametrize("name", AT_START)
def test_first_start_ends_with_78(tmp_path: Path, name: str) -> None:
    """A first start ends with 78 and one line that names the file and the check; nothing in the file was executed."""
    line = _spoiled(tmp_path / "models", name)

    Server(tmp_path / "models").ends(78, line)

    assert not (tmp_path / "sprung").exists()


def test_traps_are_real(tmp_path: Path) -> None:
    """What the files hold does make the folder where it is unpickled: the tests above and below show something."""
    for number, make in enumerate((pickled, saved)):
        trap = tmp_path / f"{number}"
        data = make(trap)
        if make is pickled:
            pickle.loads(data)  # noqa: S301 - our own, from a line above
        else:
            torch.load(io.BytesIO(data), weights_only=False)
        assert trap.exists()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one good torch model, which every fault is put beside in turn; in the end it is mended and reloads."""
    models = tmp_path_factory.mktemp("served") / "models"
    put_torch(models, "good", "model.safetensors")
    with Server(models, workers=2) as server:
        yield server
        server.reload()


def _serves(server: Server) -> None:
    status, given = server.infer("good", GOOD)
    assert status == 200
    assert given["outputs"][0]["data"] == pytest.approx(answer([[1, 2, 3]]).ravel().tolist(), rel=1e-5)


@pytest.mark.parametrize("name", FAULTS)
def test_reload_is_refused(served: Server, name: str) -> None:
    """The same at a reload: the reason says which file and which check, nothing was executed, the same workers serve on."""
    line = _spoiled(served.models, name)
    try:
        served.reload(refused=line)
    finally:
        shutil.rmtree(served.models / name)

    assert not (served.models.parent / "sprung").exists()
    _serves(served)


NOT_TOKENIZERS = {
    "text": b"a tokenizer, surely\n",
    "json": b'{"model": {"type": "WordLevel"}}',
    "pickle": pickle.dumps({"version": "1.0"}),
}


@pytest.mark.parametrize("name", NOT_TOKENIZERS)
def test_not_a_tokenizer_refuses_a_reload(served: Server, name: str) -> None:
    """A `tokenizer.json` that is not one is named, and what serves goes on."""
    folder = put_text(served.models, f"words-{name}")
    (folder / "tokenizer.json").write_bytes(NOT_TOKENIZERS[name])
    try:
        served.reload(refused=rf"\S*/words-{name}/1/tokenizer\.json: not a tokenizer: ")
    finally:
        shutil.rmtree(folder.parent)

    _serves(served)


def test_not_a_tokenizer_ends_a_first_start_with_78(tmp_path: Path) -> None:
    """The same at a first start."""
    (put_text(tmp_path, "words") / "tokenizer.json").write_bytes(NOT_TOKENIZERS["text"])

    Server(tmp_path).ends(78, r"\S*/words/1/tokenizer\.json: not a tokenizer: ")


def test_replaced_weights_do_not_reach_what_serves(served: Server) -> None:
    """The file of a served model is replaced, and one is put in its place that does not fit: what was loaded serves on."""
    file = served.models / "good" / "1" / "model.safetensors"
    new = file.with_name("new")
    new.write_bytes(_weights(".safetensors", layer_weight=torch.zeros(2, 4))(new))
    new.replace(file)
    try:
        _serves(served)
        served.reload(refused=r"\S*/good/1/model\.safetensors: tensor 'layer\.weight' must have shape")
        _serves(served)
    finally:
        new.write_bytes(content(file.name))
        new.replace(file)


@pytest.mark.skipif(available(Precision.BF16) is not Precision.BF16, reason="this processor has no bf16")
def test_precision_past_its_bound(tmp_path: Path, served: Server) -> None:
    """Half precision that differs by more than `max_difference` ends a first start with 70, and refuses a reload, by name."""
    line = r"model half/1: beside float32, bf16 differs by \S+, torch\.max_difference is 1e-09"
    put_torch(tmp_path, "half", "model.pth", PRECISE)

    Server(tmp_path).ends(70, line)

    shutil.copytree(tmp_path / "half", served.models / "half")
    try:
        served.reload(refused=line)
    finally:
        shutil.rmtree(served.models / "half")
    _serves(served)
