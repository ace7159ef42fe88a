"""What a `.pt2` archive may hold, looked at before torch loads it: torch would unpickle some parts and evaluate others.

In torch 2.13 sizes go through `sympy.sympify`, which evaluates Python; guards and names become part of a function's source; what
a node calls is looked up by name in the whole of torch; weights, constants and examples may be pickles.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from server.exits import ConfigurationError, ExitError

# What a plain program consists of; besides there could be custom objects and native code.
_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
_TARGET = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|torch\.sym_\w+|torch\._sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|lshift|rshift)"
)
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|floor|ceiling"
    r"|FloorDiv|CeilDiv|CleanDiv|PythonMod|ModularIndexing|Where|IntTrueDiv|FloatTrueDiv|TruncToInt|ToFloat|RoundToInt"
    r"|CeilToInt|FloorToInt|PowByNatural|FloatPow"
)
_NAME = re.compile(r"[\w.]*")
_ATTRIBUTES = frozenset({"size", "shape", "stride", "storage_offset"})
_GRAMMAR = (
    *(ast.Expression, ast.Load, ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Call, ast.keyword),
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.IfExp),
)


def check(path: Path) -> None:
    """Raise `ConfigurationError` naming the file and what it holds, unless that is a graph and plain tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            _check_entries(path, entries, archive.namelist())
            _check_sizes(path, archive)
            for entry, name in entries.items():
                if entry.endswith("_config.json") and entry.startswith("data/"):
                    config = json.loads(archive.read(name))
                    _check_payloads(path, config)
                    _check_devices(path, config)
            _check_examples(path, archive.read(entries["data/sample_inputs/model.pt"]))
            program = json.loads(archive.read(entries["models/model.json"]))
            _check_graph(path, program)
            _check_devices(path, program)
    except (ExitError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - what a broken archive makes the libraries raise has no end
        message = f"{path}: not a program of torch.export: {type(error).__name__}: {error}"
        raise ConfigurationError(message) from None


def _check_entries(path: Path, entries: dict[str, str], names: list[str]) -> None:
    # Readers differ in which of two entries of one name they take, and in whether they look at its case.
    if "models/model.json" not in entries or len({entry.casefold() for entry in entries}) < len(names):
        message = f"{path}: not a program of torch.export: the archive must have one models/model.json, and no entry twice"
        raise ConfigurationError(message)
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            message = f"{path}: holds {entry[:80]!r}, which is not a graph or a plain tensor, and is never loaded"
            raise ConfigurationError(message)


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED:  # it could be a thousand times as large
            message = f"{path}: {info.filename!r} is compressed, which torch's own archives are not"
            raise ConfigurationError(message)


def _check_payloads(path: Path, config: dict[str, Any]) -> None:
    for name, payload in config["config"].items():
        _check_name(path, name)
        if payload["use_pickle"]:
            message = f"{path}: {name!r} is stored as a pickle, which is never loaded"
            raise ConfigurationError(message)


def _check_devices(path: Path, value: Any) -> None:
    """What was exported on a GPU would be loaded there, by whoever loads it."""
    if isinstance(value, dict):
        for key in ("device", "as_device"):
            if isinstance(device := value.get(key), dict) and device["type"] not in ("cpu", "meta"):
                message = (
                    f"{path}: was exported on {device['type']!r}; export it on the processor, or move it there before it is "
                    "saved (torch.export.passes.move_to_device_pass): it runs where WARMFORK_DEVICE says all the same"
                )
                raise ConfigurationError(message)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_devices(path, inner)


def _check_examples(path: Path, content: bytes) -> None:
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, torch would go on to unpickle it without a bound
        message = f"{path}: its sample inputs are a pickle of more than tensors, which is never loaded"
        raise ConfigurationError(message) from None


def _check_graph(path: Path, program: dict[str, Any]) -> None:
    for guard in program.get("guards_code") or ():
        _check_expression(path, guard)
    for key, text in _texts(program):
        if key == "expr_str":
            _check_expression(path, text)
        elif key == "name" or key.endswith(("_name", "_names")):
            _check_name(path, text)
        elif key in ("in_spec", "out_spec"):  # a JSON text, with the names of arguments
            for kind, inner in _texts(json.loads(text)):
                for _, name in _texts(json.loads(inner)) if kind == "context" else [(kind, inner)]:
                    _check_name(path, name)
        elif key == "target" and not _TARGET.fullmatch(text):
            message = f"{path}: its graph calls {text[:80]!r}, which is no operator of torch"
            raise ConfigurationError(message)


def _check_name(path: Path, name: str) -> None:
    """Names become part of the Python that torch writes to run the graph."""
    if not _NAME.fullmatch(name):
        message = f"{path}: holds the name {name[:80]!r}; names are letters, digits, underscores and dots"
        raise ConfigurationError(message)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _texts(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)


def _check_expression(path: Path, text: str) -> None:
    """Sizes and comparisons of them may be said; no other name can be called, and no text but a symbol's name."""
    try:
        tree = ast.parse(text, mode="eval")
        plain = all(_is_plain(node) for node in ast.walk(tree))
    except SyntaxError:
        plain = False
    if not plain:
        message = f"{path}: its graph holds the expression {text[:80]!r}, which is not about sizes, and is never evaluated"
        raise ConfigurationError(message)


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(text)):  # it may be evaluated again, or become part of a message in the source
            return bool(_NAME.fullmatch(text))
        case ast.Call(func=ast.Name(id=name)):
            return bool(_FUNCTIONS.fullmatch(name))
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return name in _ATTRIBUTES
        case ast.Call():
            return False
        case ast.Name(id=name):
            return not name.startswith("_")
        case _:
            return isinstance(node, _GRAMMAR)
