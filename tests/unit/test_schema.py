"""The keys of `model.toml`: what is taken, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engines.engine import Precision
from server.exits import ConfigurationError
from server.models import schema
from server.models.schema import ModelTable, ModelToml, TensorTable, TextTable, TorchTable

FULL = """
file = "net/model.onnx"
versions = [3, 1]
batch_sizes = [1, 8]
device = "cpu"
python = "model.py"
golden = ["golden/a.json", "b.npz"]
rtol = 0
atol = 0.5
p95_ms = 20
[axes]
length = [16, 128]
[[inputs]]
name = "text"
datatype = "BYTES"
shape = [-1, 1]
[[outputs]]
name = "label"
datatype = "INT64"
shape = []
[[model.inputs]]
name = "input_ids"
datatype = "INT64"
shape = ["batch", "length", -1, 3]
[[model.outputs]]
name = "vector"
datatype = "BF16"
shape = [-1, 384]
[text]
tokenizer = "net/tokenizer.json"
input = "sentence"
truncate = false
max_bytes = 1000
pad = "<pad>"
[torch]
compile = true
graphs = false
precision = "bf16"
max_difference = 0.05
"""


def read(folder: Path, text: str) -> ModelToml:
    """Read `text` as a `model.toml`."""
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    return schema.read(path)


def test_empty(tmp_path: Path) -> None:
    """A file that says nothing says what no file says."""
    assert ModelToml() == read(tmp_path, "# nothing\n")


def test_full(tmp_path: Path) -> None:
    """Every key is read."""
    expected = ModelToml(
        file="net/model.onnx",
        versions=[3, 1],
        batch_sizes=[1, 8],
        device="cpu",
        axes={"length": [16, 128]},
        python="model.py",
        inputs=[TensorTable("text", "BYTES", [-1, 1])],
        outputs=[TensorTable("label", "INT64", [])],
        golden=["golden/a.json", "b.npz"],
        rtol=0,
        atol=0.5,
        p95_ms=20,
        model=ModelTable(
            inputs=[TensorTable("input_ids", "INT64", ["batch", "length", -1, 3])],
            outputs=[TensorTable("vector", "BF16", [-1, 384])],
        ),
        text=TextTable("net/tokenizer.json", "sentence", truncate=False, max_bytes=1000, pad="<pad>"),
        torch=TorchTable(compile=True, graphs=False, precision=Precision.BF16, max_difference=0.05),
    )

    assert expected == read(tmp_path, FULL)
    assert all(getattr(expected, field) != getattr(ModelToml(), field) for field in ModelToml.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "precision", "datatype", "tolerance"),
    [
        ("", "fp32", "FP32", (1e-3, 1e-4)),
        ("", "fp32", "FP16", (0.02, 0.02)),
        ("[torch]\nprecision = 'bf16'", "bf16", "FP32", (0.02, 0.02)),
        ("[torch]\nprecision = 'bf16'", "fp32", "FP32", (1e-3, 1e-4)),
        ("atol = 0.5", "fp16", "FP32", (0.02, 0.5)),
        ("rtol = 0", "fp32", "BF16", (0, 0.02)),
    ],
)
def test_tolerance(text: str, precision: str, datatype: str, tolerance: tuple[float, float], tmp_path: Path) -> None:
    """What half precision has calculated may differ by more, where it runs in that, unless the operator says how much."""
    assert tolerance == read(tmp_path, text).tolerance(Precision(precision), datatype)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("batch_size = [1]", "unknown key 'batch_size'; the nearest known one is 'batch_sizes'"),
        ("input = []", "unknown key 'input'; the nearest known one is 'inputs'"),
        ("zzz = 1", "unknown key 'zzz'; the nearest known one is"),
        ("[[inputs]]\nnam = 'x'", "unknown key [[inputs]] 'nam'; the nearest known one is 'name'"),
        ("[[outputs]]\nname = 'x'\ndtype = 'FP32'", "unknown key [[outputs]] 'dtype'; the nearest known one is 'datatype'"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FLOAT'\nshape = []", "datatype of 'x' must be one of BOOL, UINT8"),
        ("[[inputs]]\nname = ''\ndatatype = 'FP32'\nshape = []", "$.inputs[0].name"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [-2]", "$.inputs[0].shape"),
        ("[[inputs]]\nname = 'x'\nshape = []", "datatype"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = ['']", "$.inputs[0].shape"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [1.5]", "$.inputs[0].shape"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = [true]", "$.inputs[0].shape"),
        ("[[inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = 'batch'", "$.inputs[0].shape"),
        (2 * "[[model.inputs]]\nname = 'x'\ndatatype = 'FP32'\nshape = []\n", "[[model.inputs]] has a name twice: x, x"),
        ("[[model.outputs]]\nname = 'x'\ndatatype = 'FLOAT'\nshape = []", "datatype of 'x' must be one of BOOL, UINT8"),
        ("[model]\ninput = []", "unknown key [model] 'input'; the nearest known one is 'inputs'"),
        ("[[model.inputs]]\nnam = 'x'", "unknown key [[model.inputs]] 'nam'; the nearest known one is 'name'"),
        ("[[model.outputs]]\nname = 'x'\ndtype = 'FP32'", "unknown key [[model.outputs]] 'dtype'; the nearest known one is"),
        ("model = 3", "$.model"),
        ("[[model]]\ninputs = []", "$.model"),
        ("[model]\ninputs = 3", "$.model.inputs"),
        ("[text]\ntokeniser = 'x'", "unknown key [text] 'tokeniser'; the nearest known one is 'tokenizer'"),
        ("[text]\ntokenizer = '../tokenizer.json'", "$.text.tokenizer"),
        ("[text]\ntokenizer = ''", "$.text.tokenizer"),
        ("[text]\ninput = ''", "$.text.input"),
        ("[text]\nmax_bytes = 0", "$.text.max_bytes"),
        ('device = "cuda"', "$.device"),
        ("[text]\ntruncate = 1", "$.text.truncate"),
        ("text = true", "$.text"),
        ("[torch]\ncompil = true", "unknown key [torch] 'compil'; the nearest known one is 'compile'"),
        ("[torch]\ncompile = 'yes'", "$.torch.compile"),
        ("[torch]\nprecision = 'int8'", "$.torch.precision"),
        ("[torch]\nmax_difference = 0", "$.torch.max_difference"),
        ("[torch]\nmax_difference = nan", "$.torch.max_difference"),
        ("torch = 'fast'", "$.torch"),
        ("inputs = 3", "$.inputs"),
        ("inputs = ['x']", "$.inputs[0]"),
        ("batch_sizes = []", "$.batch_sizes"),
        ("batch_sizes = [0]", "$.batch_sizes[0]"),
        ("batch_sizes = [1.5]", "$.batch_sizes[0]"),
        ("batch_sizes = ['1']", "$.batch_sizes[0]"),
        ("batch_sizes = [true]", "$.batch_sizes[0]"),
        ("versions = []", "$.versions"),
        ("versions = 1", "$.versions"),
        ("[axes]\nlength = []", "$.axes"),
        ("[axes]\nlength = 3", "$.axes"),
        ("file = ''", "$.file"),
        ("file = '/etc/passwd'", "$.file"),
        ("file = '../model.onnx'", "$.file"),
        ("file = 'a/../../model.onnx'", "$.file"),
        ("python = '..'", "$.python"),
        ("golden = ['a.json', 'x/..']", "$.golden[1]"),
        ("rtol = -0.1", "$.rtol"),
        ("rtol = nan", "$.rtol"),
        ("p95_ms = 0", "$.p95_ms"),
        ("p95_ms = nan", "$.p95_ms"),
        ("a = 1\na = 2", "overwrite"),
        ("batch_sizes = [", ""),
    ],
)
def test_refused(tmp_path: Path, text: str, part: str) -> None:
    """What is wrong is refused in one line that has the file and the key."""
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, text)

    assert str(refused.value).startswith(f"{tmp_path / 'model.toml'}: ")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_dots_inside_names(tmp_path: Path) -> None:
    """Two dots climb only where they are a whole part of the path."""
    assert "a..b/..c" == read(tmp_path, "file = 'a..b/..c'").file


@pytest.mark.parametrize("content", [b"file = '\xff'", b"\x00", None])
def test_unreadable(tmp_path: Path, content: bytes | None) -> None:
    """A file that is no text, or no file, is refused by its name."""
    path = tmp_path / "model.toml"
    path.mkdir() if content is None else path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=str(path)):
        schema.read(path)
