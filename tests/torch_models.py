"""Small torch models and texts for tests: each function writes one into a repository."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.models import BATCHED

Matrix = np.ndarray[Any, np.dtype[np.float32]]

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

def module():
    return Net()
"""
"""`y` is a linear layer of `x`; see `answer`."""

TENSORS = """
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 3]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""
"""What `NETWORK` takes and gives."""

WEIGHT = np.array([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]], np.float32)
BIAS = np.array([0.7, -0.7], np.float32)

TEXT_NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding({words}, 4)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return (self.table(input_ids) * mask).sum(1) / mask.sum(1)

def module():
    return Net()
"""
"""The mean of the vectors of a text's words; see `vector`. Of a row that is padding alone it is 0/0."""

TEXT_TENSORS = """
[[model.inputs]]
name = "input_ids"
datatype = "INT64"
shape = [-1, "length"]
[[model.inputs]]
name = "attention_mask"
datatype = "INT64"
shape = [-1, "length"]
[[outputs]]
name = "vector"
datatype = "FP32"
shape = [-1, 4]
"""
BUCKETS = (4, 8, 16)
"""Tokens, two of which are not words: texts of 2, 6 and 14 words fill a bucket."""

WORDS = [
    *("a", "the", "when", "first", "boats", "came", "home", "harbour", "was", "quiet", "lamp", "door"),
    *("dog", "slept", "in", "sun", "later", "it", "rained", "map", "road", "island", "ferry"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}


def answer(rows: Sequence[Sequence[float]]) -> Matrix:
    """What `NETWORK` gives for `rows`, [rows, 2]."""
    given: Matrix = np.array(rows, np.float32) @ WEIGHT.T + BIAS
    return given


def state() -> dict[str, torch.Tensor]:
    """The weights of `NETWORK`."""
    return {"layer.weight": torch.tensor(WEIGHT), "layer.bias": torch.tensor(BIAS)}


def network() -> torch.nn.Module:
    """`NETWORK` with its weights."""
    names: dict[str, Any] = {}
    exec(NETWORK, names)  # noqa: S102 - our own text, above
    made: torch.nn.Module = names["module"]()
    made.load_state_dict(state())
    return made.eval()


@cache
def content(file: str) -> bytes:
    """`NETWORK`, or its weights, as a file of the form that the ending of `file` says."""
    buffer = io.BytesIO()
    match Path(file).suffix:
        case ".safetensors":
            return to_safetensors(state())
        case ".pth":
            torch.save(state(), buffer)
        case ".pt2":
            free = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
            torch.export.save(torch.export.export(network(), (torch.rand(2, 3),), dynamic_shapes=free), buffer)
        case ".pt":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is, and is served all the same
                torch.jit.save(torch.jit.trace(network(), torch.rand(2, 3)), buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def other_files(but: str) -> dict[str, bytes]:
    """What is no file of the ending `but`, by what it is."""
    kinds = {"empty": b"", "zip": b"PK\x03\x04", "text": b"not a program", "pickle": b"\x80\x04]\x94."}
    return kinds | {ending: content(f"model.{ending}") for ending in ("pth", "pt", "pt2", "safetensors") if ending != but}


def put_file(folder: Path, name: str, data: bytes) -> Path:
    """Write a file."""
    path = folder / name
    path.write_bytes(data)
    return path


def put_torch(
    root: Path, name: str, file: str, toml: str = BATCHED + TENSORS, python: str = NETWORK, *, version: int = 1
) -> Path:
    """Write `NETWORK` as `file`, beside `python` if that holds weights alone, as one version of `name`; give its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content(file))
    if Path(file).suffix in (".safetensors", ".pth"):
        toml = 'python = "model.py"\n' + toml
        (folder / "model.py").write_text(python, encoding="utf-8")
    (folder.parent / "model.toml").write_text(f'file = "{file}"\n{toml}', encoding="utf-8")
    return folder


def tokenizer() -> Tokenizer:
    """Words by their numbers, [CLS] before them and [SEP] after."""
    made = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))  # noqa: S106 - no password
    made.pre_tokenizer = Whitespace()
    ends = [(word, VOCABULARY[word]) for word in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.enable_padding(pad_id=VOCABULARY["[PAD]"], pad_token="[PAD]")  # noqa: S106 - no password
    return made


def table() -> Matrix:
    """The vectors of the words, [words, 4]; that of padding is far from all others."""
    made = np.random.Generator(np.random.PCG64(7)).random((len(VOCABULARY), 4), np.float32)
    made[VOCABULARY["[PAD]"]] = 1e6
    return made


def put_text(root: Path, name: str, text: str = "", *, version: int = 1) -> Path:
    """Write the text model, with the lines `text` in its table [text], as one version of `name`; give the version's folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(to_safetensors({"table.weight": torch.tensor(table())}))
    (folder / "model.py").write_text(TEXT_NETWORK.format(words=len(VOCABULARY)), encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))
    top = 'file = "model.safetensors"\npython = "model.py"\nbatch_sizes = [1, 4]\n'
    axes = f"axes = {{ length = {list(BUCKETS)} }}\n"
    (folder.parent / "model.toml").write_text(f"{top}{axes}[text]\n{text}\n{TEXT_TENSORS}", encoding="utf-8")
    return folder


def sentence(words: int, start: int = 0) -> str:
    """A text of so many words, from the word `start` on."""
    return " ".join(WORDS[(start + place) % len(WORDS)] for place in range(words))


def vector(text: str) -> list[float]:
    """What the text model gives for one text: the mean over its first tokens, as many as the longest bucket has."""
    ids = tokenizer().encode(text).ids
    kept = ids if len(ids) <= BUCKETS[-1] else [*ids[: BUCKETS[-1] - 1], ids[-1]]
    return [float(number) for number in table()[kept].mean(0)]


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        """Make `folder`."""
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        """What a pickle of this runs."""
        return os.mkdir, (str(self.folder),)


def pickled(folder: Path) -> bytes:
    """A pickle that makes `folder`, and nothing around it."""
    return pickle.dumps(Trap(folder))


def saved(folder: Path) -> bytes:
    """What `torch.save` makes of a tensor's name and a trap: a zip archive with a pickle that makes `folder`."""
    buffer = io.BytesIO()
    torch.save({"layer.weight": Trap(folder)}, buffer)
    return buffer.getvalue()


def changed(archive: bytes, change: Callable[[str, bytes], bytes], added: dict[str, bytes] | None = None) -> bytes:
    """A torch archive whose entries are what `change` makes of their names, without the root, and contents; `added` besides."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            root, _, entry = name.partition("/")
            new.writestr(name, change(entry, old.read(name)))
        for entry, data in (added or {}).items():
            new.writestr(f"{root}/{entry}", data)
    return made.getvalue()


def pickled_weight(folder: Path) -> bytes:
    """A program of torch.export one weight of which is said to be a pickle, and is one that makes `folder`."""

    def change(entry: str, data: bytes) -> bytes:
        if entry.endswith("model_weights_config.json"):
            config = json.loads(data)
            config["config"]["layer.weight"]["use_pickle"] = True
            return json.dumps(config).encode()
        return saved(folder) if entry.endswith("weights/weight_0") else data

    return changed(content("model.pt2"), change)
