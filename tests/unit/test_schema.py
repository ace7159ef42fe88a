"""The keys of `model.toml`: what is taken, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.exits import ConfigurationError
from server.models import schema
from server.models.schema import ModelToml, TensorTable

FULL = """
file = "net/model.onnx"
versions = [3, 1]
batch_sizes = [1, 8]
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
        axes={"length": [16, 128]},
        python="model.py",
        inputs=[TensorTable("text", "BYTES", [-1, 1])],
        outputs=[TensorTable("label", "INT64", [])],
        golden=["golden/a.json", "b.npz"],
        rtol=0,
        atol=0.5,
        p95_ms=20,
    )

    assert expected == read(tmp_path, FULL)
    assert all(getattr(expected, field) != getattr(ModelToml(), field) for field in ModelToml.__struct_fields__)


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
