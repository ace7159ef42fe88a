"""The demo repository: made whole or not at all, the same bytes each time, with the answers of magika itself."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import subprocess
import sys
import tomllib
import wave
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
import pytest
from magika import Magika

from demo import repository, resnet50

ROOT = Path(__file__).parents[2]
tiny = partial(resnet50.build, (1, 2), image=32, classes=10, width=8)


def demo(*arguments: object) -> str:
    """Run `python -m demo` and return what it says."""
    command = [sys.executable, "-m", "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `filetype` in it, made by the command."""
    target = tmp_path_factory.mktemp("demo") / "models"
    demo(target, "--only", "filetype")
    return target


@pytest.fixture(scope="module")
def filetype(models: Path) -> ModuleType:
    """The operator's Python of `filetype`, loaded from where it was written."""
    spec = importlib.util.spec_from_file_location("filetype_model", models / "filetype/1/model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def written(name: str) -> bytes:
    """A small file of a binary kind."""
    file = io.BytesIO()
    if name == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "text " * 50)
    elif name == "wav":
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(2000))
    elif name == "npy":
        np.save(file, np.arange(100))
    return file.getvalue()


def contents() -> list[bytes]:
    """Contents of many kinds, and every way of being too short, at and around the borders that magika knows."""
    source = Path(__file__).read_bytes()
    spaces = [b" ", b"\t" * 7, b"\r\n" * 4, b"\v" * 4088, b"\f" * 4095, b" \n" * 2048, b" " * 4097, b"\n" * 9000]
    payloads = [b"x", b"1234567", b"12345678", b"\xff\xfe\x00\x01", "äöü€".encode(), source[:3000]]
    return [
        b"",
        source,
        source * 3,
        (ROOT / "demo/filetype/model.toml").read_bytes(),
        json.dumps({"a": [1, 2, 3], "b": {"c": None}} | {str(key): key for key in range(50)}).encode(),
        b"<!DOCTYPE html><html><head><title>a</title></head><body><p>text</p></body></html>",
        b"#!/bin/bash\nset -e\nfor f in *; do echo $f; done\n",
        b"int main(void) { return 0; }\n",
        b"# Title\n\nSome *text* and a [link](https://example.org).\n\n- one\n- two\n",
        b"a,b,c\n" + b"1,2,3\n" * 40,
        b"SELECT * FROM t WHERE a = 1;\n",
        b"Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
        "Straße und Grüße".encode("latin-1"),
        "öffentlich ".encode() * 900,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\6\0\0\0\x1f\x15\xc4\x89",
        b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n",
        gzip.compress(source, mtime=0),
        Path(sys.executable).read_bytes()[:20_000],
        np.random.Generator(np.random.PCG64(1)).bytes(5000),
        bytes(100),
        bytes(range(256)),
        *map(written, ("zip", "wav", "npy")),
        *spaces,
        *payloads,
        *(space + payload for space in spaces for payload in payloads),
        *(payload + space + payload for space in spaces[-3:] for payload in payloads),
        b" " * 4095 + "ö".encode() * 9,
    ]


def test_filetype_answers_as_magika_does(models: Path, filetype: ModuleType) -> None:
    """Row by row, type and score are magika's for contents of many kinds."""
    magika = Magika()
    sent = contents()
    expected = [magika.identify_bytes(content) for content in sent]
    inputs = {"content": np.array(sent, object)}
    network = session(models / "filetype/1/model.onnx")
    tokens = filetype.preprocess(inputs)["bytes"]

    # Row by row, as magika runs them.
    target = np.concatenate([network.run(["target_label"], {"bytes": row[np.newaxis]})[0] for row in tokens])
    actual = filetype.postprocess({"target_label": target}, inputs)

    assert [str(result.output.label).encode() for result in expected] == list(actual["type"])
    np.testing.assert_allclose(actual["score"], [result.score for result in expected], rtol=1e-4)
    assert actual["score"].dtype == np.float32
    assert len({*actual["type"]}) > 15, "the contents are too much alike to show anything"


def test_filetype_takes_no_rows(filetype: ModuleType) -> None:
    """No content at all is no rows, not an error."""
    inputs = {"content": np.array([], object)}

    assert filetype.preprocess(inputs)["bytes"].shape == (0, 2048)
    assert filetype.postprocess({"target_label": np.zeros((0, 214), np.float32)}, inputs)["type"].shape == (0,)


def test_filetype_golden_answers_hold(models: Path, filetype: ModuleType) -> None:
    """Each golden sample that the repository brings is answered by what the repository brings."""
    folder = models / "filetype"
    settings = tomllib.loads((folder / "model.toml").read_text())
    network = session(folder / "1/model.onnx")
    types = []
    for name in settings["golden"]:
        golden = json.loads((folder / name).read_text())
        inputs = {"content": np.array([text.encode() for text in golden["inputs"]["content"]], object)}
        (target,) = network.run(["target_label"], filetype.preprocess(inputs))

        actual = filetype.postprocess({"target_label": target}, inputs)

        types += [kind.decode() for kind in actual["type"]]
        assert [kind.encode() for kind in golden["outputs"]["type"]] == list(actual["type"])
        np.testing.assert_allclose(actual["score"], golden["outputs"]["score"], rtol=1e-3, atol=1e-4)

    assert ["python", "sql", "c", "shell", "txt"] == types


def test_resnet_is_the_same_bytes_each_time() -> None:
    """The same seed gives the same file, another seed another."""
    first, second, other = (tiny(seed=seed).SerializeToString(deterministic=True) for seed in (1, 1, 2))

    assert first == second
    assert first != other


def test_resnet_is_the_network_of_the_paper() -> None:
    """With the default arguments: 53 convolutions and one product (50 without the shortcuts), and its 25.5 million weights."""
    graph = resnet50.build().graph
    kinds = [node.op_type for node in graph.node]

    assert kinds.count("Conv") == 49 + 4
    assert kinds.count("Gemm") == 1
    # 25,557,032 are known of the trained one; batch normalisation has a scale per channel that is folded away here.
    assert sum(int(np.prod(weight.dims)) for weight in graph.initializer) == 25_557_032 - 26_560
    strided = [node.name for node in graph.node if node.op_type == "Conv" and node.attribute[-1].ints[0] == 2]
    assert sum(name.endswith(".spatial") for name in strided) == 3
    assert not any(name.endswith(".reduce") for name in strided)


def test_resnet_row_alone_equals_row_in_batch() -> None:
    """The batch axis is free, rows do not know of each other, and different images get different scores of a sane size."""
    model = tiny()
    onnx.checker.check_model(model, full_check=True)
    network = session(model.SerializeToString())
    images = np.random.Generator(np.random.PCG64(3)).standard_normal((4, 3, 32, 32), np.float32)

    (together,) = network.run(["scores"], {"image": images})
    alone = [network.run(["scores"], {"image": images[row : row + 1]})[0][0] for row in range(4)]

    assert network.get_inputs()[0].shape == ["batch", 3, 32, 32]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    assert 0.1 < together.std() < 10
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_making_again_changes_nothing(models: Path) -> None:
    """What is there stays as it is and is said in one line; `--force` makes it anew."""
    file = models / "filetype/1/model.onnx"
    before = file.stat()

    said = demo(models, "--only", "filetype")

    assert said == f"{models}: filetype already there\n"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    said = demo(models, "--only", "filetype", "--force")

    assert said.startswith(f"{models / 'filetype'}: made, ")
    assert file.stat().st_mtime_ns > before.st_mtime_ns
    assert [folder.name for folder in models.iterdir()] == ["filetype"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a model cut short by Ctrl-C nor what a killed run left behind is ever seen; the next run makes it whole."""

    def interrupted(folder: Path) -> None:
        (folder / "model.toml").touch()
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        (folder / "model.toml").write_text("")

    killed = tmp_path / repository.WORKSHOP / "resnet50"
    killed.mkdir(parents=True)
    (killed / "half").touch()
    monkeypatch.setattr(resnet50, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repository.make(tmp_path, ["resnet50"])

    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(resnet50, "write", whole)
    repository.make(tmp_path, ["resnet50"])

    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["resnet50", "resnet50/model.toml"]
