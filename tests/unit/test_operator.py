"""The operator's Python: what is found in it, and what is refused in which words."""

from __future__ import annotations

import gc
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from server.exits import ConfigurationError
from server.models import operator
from server.models.operator import OperatorPython
from server.models.repository import ModelFiles
from server.models.schema import ModelToml


def files(folder: Path, source: str, name: str = "m", file: str = "model.py") -> ModelFiles:
    """A version with `source` as its Python."""
    (folder / file).write_text(source, encoding="utf-8")
    return ModelFiles(name, 1, folder, ModelToml(python=file))


def test_none(tmp_path: Path) -> None:
    """A model without Python has none of the functions."""
    assert OperatorPython() == operator.load(ModelFiles("m", 1, tmp_path, ModelToml()))


@pytest.fixture(autouse=True)
def _writes_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "module"])
def test_either(tmp_path: Path, name: str) -> None:
    """One function is enough; the others are absent."""
    python = operator.load(files(tmp_path, f"def {name}(*given): return {{'n': len(given)}}"))

    function = getattr(python, name)
    assert {"n": 2} == function({}, {})
    assert 2 == [python.preprocess, python.postprocess, python.module].count(None)


def test_module_is_not_called(tmp_path: Path) -> None:
    """`module()` makes the network; to import the file does not, since whoever loads the weights prepares for it."""
    python = operator.load(files(tmp_path, "def module(): raise RuntimeError('called')\ndef preprocess(inputs): return inputs"))

    assert python.preprocess
    assert python.module
    with pytest.raises(RuntimeError, match="called"):
        python.module()


def test_module_may_be_a_class(tmp_path: Path) -> None:
    """Whatever can be called without arguments is a `module()`, the class of the network too."""
    python = operator.load(files(tmp_path, "class Net: pass\nmodule = Net"))

    assert python.module
    assert "Net" == type(python.module()).__name__


def test_works_as_a_module(tmp_path: Path) -> None:
    """The module is a real one (dataclasses and `__file__` work in it), and leaves no byte code in the repository."""
    source = """
from __future__ import annotations
import dataclasses, pathlib, numpy as np

@dataclasses.dataclass
class Scale:
    by: float

SCALE = Scale(float((pathlib.Path(__file__).parent / "scale.txt").read_text()))

def preprocess(inputs):
    return {"x": inputs["x"] * SCALE.by}
"""
    (tmp_path / "scale.txt").write_text("3", encoding="ascii")

    python = operator.load(files(tmp_path, source))

    assert python.preprocess
    assert [3, 6] == python.preprocess({"x": np.array([1, 2])})["x"].tolist()
    assert ["model.py", "scale.txt"] == sorted(path.name for path in tmp_path.iterdir())
    assert sys.dont_write_bytecode


def test_loaded_anew(tmp_path: Path) -> None:
    """A second load reads the file as it is then, and what the first gave stays as it was."""
    first = operator.load(files(tmp_path, "def preprocess(inputs): return 1"))
    second = operator.load(files(tmp_path, "def preprocess(inputs): return 22"))

    assert first.preprocess
    assert second.preprocess
    assert [1, 22] == [int(str(python.preprocess({}))) for python in (first, second) if python.preprocess]


def test_names_do_not_meet(tmp_path: Path) -> None:
    """Models whose names differ in a dot or a dash alone are modules of their own, each its own while it is imported."""
    source = "import sys\nME = sys.modules[__name__]\ndef preprocess(inputs): return [__name__, ME.preprocess is preprocess]"
    found = [operator.load(files(tmp_path, source, name)).preprocess for name in ("a-b", "a.b", "a_b")]
    names, itself = zip(*[function({}) for function in found if function], strict=True)

    assert ["a-b/1", "a.b/1", "a_b/1"] == [bytes.fromhex(name.split("_")[2]).decode() for name in names]
    assert (True, True, True) == itself


def test_let_go(tmp_path: Path) -> None:
    """A module that has kept an exception, which leads to whoever imported it, goes when it is told to."""
    caught = "try:\n    import not_installed\nexcept ImportError as error:\n    WHY = error\ndef preprocess(inputs): return WHY"
    made = operator.load(files(tmp_path, caught))
    name, kept = made.name, weakref.ref(made)
    assert name in sys.modules

    operator.let_go(name)

    assert name not in sys.modules
    del made

    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("source", ["def preprocess(inputs): return 1", "1 / 0"])
def test_not_kept(tmp_path: Path, source: str) -> None:
    """A module goes with whoever holds its functions: every version that was ever loaded would else stay in memory."""
    before = set(sys.modules)

    with suppress(ConfigurationError):
        operator.load(files(tmp_path, source))

    assert before == set(sys.modules)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("", "must define preprocess(inputs), postprocess(outputs, inputs) or module()"),
        ("def predict(inputs): pass", "must define preprocess(inputs), postprocess(outputs, inputs) or module()"),
        ("preprocess = 3", "must define"),
        ("def preprocess(inputs): pass\npostprocess = 'x'", "must define"),
        ("preprocess = postprocess = None", "must define"),
        ("module = 3", "must define"),
        ("def preprocess(inputs): pass\nmodule = 'x'", "must define"),
        ("import os as module", "must define"),
        ("def preprocess(:", "SyntaxError"),
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
    ],
)
def test_refused(tmp_path: Path, source: str, part: str) -> None:
    """What cannot be imported, or brings nothing, is refused in one line that has the file; nothing of it stays."""
    before = set(sys.modules)

    with pytest.raises(ConfigurationError) as refused:
        operator.load(files(tmp_path, source))

    assert str(refused.value).startswith(f"{tmp_path / 'model.py'}: ")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not any("tmp" in name for name in set(sys.modules) - before)
    assert sys.dont_write_bytecode


def test_no_python_file(tmp_path: Path) -> None:
    """A file with another ending is not run."""
    with pytest.raises(ConfigurationError, match="is not a Python file"):
        operator.load(files(tmp_path, "def preprocess(inputs): pass", file="model.txt"))
