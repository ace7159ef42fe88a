"""What must not be in a `.pt2` archive. Each trap is a folder that is made by whoever executes what he should not."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.engines.engine import Source
from server.engines.torch_export import ENGINE
from server.exits import ConfigurationError
from tests.torch_models import Trap, answer, changed, content, other_files, pickled, put_file, saved

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

OTHER_FILES = other_files("pt2")


def with_entry(part: str, data: bytes) -> bytes:
    """The plain program with other content in the entry that ends so."""
    return changed(content("model.pt2"), lambda name, old: data if name.endswith(part) else old)


def with_graph(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The plain program with another graph."""

    def edit(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        graph = json.loads(data)
        change(graph)
        return json.dumps(graph).encode()

    return changed(content("model.pt2"), edit)


def with_values(key: str, value: Any) -> bytes:
    """The plain program with `value` wherever its graph has `key`."""

    def walk(item: Any) -> None:
        for inner in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
            walk(inner)
        if isinstance(item, dict) and key in item:
            item[key] = value

    return with_graph(walk)


def with_name(name: str) -> bytes:
    """The plain program whose input has another name."""

    def change(graph: dict[str, Any]) -> None:
        made = json.loads(json.dumps(graph).replace('"x"', json.dumps(name)))
        graph.clear()
        graph.update(made)

    return with_graph(change)


def as_pickle(file: str, entry: str, data: bytes, *, last: bytes | None = None) -> bytes:
    """The plain program whose first tensor of `file` is said to be a pickle, and is `data`; `last`: a second list of them."""

    def edit(name: str, old: bytes) -> bytes:
        if not name.endswith(file):
            return data if name.endswith(entry) else old
        config = json.loads(old)
        meta = {"path_name": Path(entry).name, "is_param": True, "use_pickle": True, "tensor_meta": None}
        if config["config"]:
            first = next(iter(config["config"]))
            config["config"][first] |= {"use_pickle": True}
        else:
            config["config"]["constant"] = meta
        return json.dumps(config).encode()

    added = {entry: data} if not any(entry in name for name in names()) else {}
    if last is not None:
        added[file] = last
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an entry twice, which is what this is about
        return changed(content("model.pt2"), edit, added)


def names() -> list[str]:
    """The entries of the plain program."""
    with zipfile.ZipFile(io.BytesIO(content("model.pt2"))) as archive:
        return [name.partition("/")[2] for name in archive.namelist()]


def entry(name: str) -> bytes:
    """One entry of the plain program."""
    with zipfile.ZipFile(io.BytesIO(content("model.pt2"))) as archive:
        return archive.read(next(each for each in archive.namelist() if each.endswith(name)))


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def call(trap: Path) -> str:
    """A Python expression that springs the trap."""
    return f"__import__('os').mkdir({str(trap)!r})"


def quoteless(trap: Path) -> str:
    """Likewise, in double quotes."""
    return f'__import__("os").mkdir("{trap}")'


BOMBS: dict[str, Callable[[Path], bytes]] = {
    "bare pickle": pickled,
    "saved by torch": saved,
    "weight": lambda trap: as_pickle(WEIGHTS, "data/weights/weight_0", saved(trap)),
    "constant": lambda trap: as_pickle(CONSTANTS, "data/constants/tensor_0", saved(trap)),
    "hidden by a second list": lambda trap: as_pickle(WEIGHTS, "data/weights/weight_0", saved(trap), last=entry(WEIGHTS)),
    "custom object": lambda trap: as_pickle(CONSTANTS, "data/constants/custom_obj_0", pickled(trap)),
    "opaque object": lambda trap: as_pickle(CONSTANTS, "data/constants/opaque_obj_0", pickled(trap)),
    "sample inputs": lambda trap: with_entry("sample_inputs/model.pt", pickled(trap)),
    "sample inputs saved by torch": lambda trap: with_entry("sample_inputs/model.pt", saved(trap)),
    "old weights": lambda trap: changed(content("model.pt2"), lambda _, data: data, {"data/weights/model.pt": saved(trap)}),
    "old constants": lambda trap: changed(content("model.pt2"), lambda _, data: data, {"data/constants/model.pt": saved(trap)}),
    "second program": lambda trap: changed(
        content("model.pt2"),
        lambda _, data: data,
        {"models/x.json": entry("models/model.json"), "data/sample_inputs/x.pt": saved(trap)},
    ),
    "native code": lambda _: changed(content("model.pt2"), lambda _, data: data, {"data/aotinductor/model/x.so": b"\x7fELF"}),
    "guard": lambda trap: with_values("guards_code", [f"{call(trap)} is None"]),
    "guard that ends its message": lambda trap: with_values("guards_code", [f"1 if 1 else L['\"+str({quoteless(trap)})+\"']"]),
    "size": lambda trap: with_values("expr_str", f"{call(trap)} or 2"),
    "size of a text": lambda trap: with_values("expr_str", f"Mod({quoteless(trap)!r} if 1 else 0, 2)"),
    "size of a floor": lambda trap: with_values("expr_str", f"floor({quoteless(trap)!r} or 0)"),
    "size by attributes": lambda trap: with_values("expr_str", f"Symbol.__class__.__base__ and {call(trap)}"),
    "name": lambda trap: with_name(f"x={call(trap)}"),
    "name of an argument": lambda trap: with_values("forward_arg_names", [f"x={call(trap)}"]),
    "function of torch": lambda _: with_values("target", "torch.hub.load"),
    "function of os": lambda _: with_values("target", "torch.os.system"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path: Path, name: str) -> None:
    """A pickle, native code and Python in any place where torch would execute it are refused by the check, in one line."""
    trap = tmp_path / "trap"
    path = put_file(tmp_path, "model.pt2", BOMBS[name](trap))

    with pytest.raises(ConfigurationError, match=f"^{path}: ") as refused:
        ENGINE.check(Source(path))

    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not trap.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    """What the tests above look for is what happens where a pickle is executed."""
    with pytest.raises((AttributeError, TypeError, KeyError, pickle.UnpicklingError, OSError)):  # noqa: PT012 - see above
        pickle.loads(pickled(tmp_path / "trap"))  # noqa: S301 - our own
        pickle.loads(pickle.dumps(Trap(tmp_path / "trap")))  # noqa: S301 - our own, once more

    assert (tmp_path / "trap").is_dir()


def test_pickled_by_torch_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `torch.export.save` itself has stored a weight as a pickle, the line says which weight."""
    from torch.export.pt2_archive import _package  # noqa: PLC0415 - torch's own, for this test alone

    monkeypatch.setattr(_package, "_should_use_pickle", lambda _: True)
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.rand(2, 3),)), path)

    with pytest.raises(ConfigurationError, match=f"^{path}: '(weight|bias)' is stored as a pickle, which is never loaded$"):
        ENGINE.check(Source(path))


@pytest.mark.parametrize("data", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    """A file of another kind is refused by its name and the check."""
    path = put_file(tmp_path, "model.pt2", data)

    for refuse in (lambda: ENGINE.check(Source(path)), lambda: ENGINE.load(Source(path), 1)):
        with pytest.raises(ConfigurationError, match=f"^{path}: not a program of torch.export: ") as refused:
            refuse()
        assert "\n" not in str(refused.value)


def test_truncated(tmp_path: Path) -> None:
    """A program that was cut off is refused, wherever it was cut."""
    whole = content("model.pt2")
    for part in (1, 30, len(whole) // 2, len(whole) - 20, len(whole) - 1):
        path = put_file(tmp_path, "model.pt2", whole[:part])

        with pytest.raises(ConfigurationError, match=f"^{path}: not a program of torch.export: "):
            ENGINE.check(Source(path))
        with pytest.raises(ConfigurationError, match=f"^{path}: not a program of torch.export: "):
            ENGINE.load(Source(path), 1)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_damaged(tmp_path: Path, place: int) -> None:
    """A byte that was changed in the list of entries is found, or changes nothing; never is there an error of another kind."""
    data = bytearray(content("model.pt2"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        data[archive.start_dir + place] ^= 0xFF
    path = put_file(tmp_path, "model.pt2", bytes(data))

    try:
        ENGINE.check(Source(path))
    except ConfigurationError as refused:
        assert str(refused).startswith(f"{path}: ")  # noqa: PT017 - a change that changes nothing is right as well


@pytest.mark.parametrize(
    ("part", "data"),
    [
        (WEIGHTS, b"[]"),
        (WEIGHTS, b"{}"),
        (WEIGHTS, b'{"config": 3}'),
        (WEIGHTS, b'{"config": {"layer.weight": {}}}'),
        (WEIGHTS, b"\xff"),
        (WEIGHTS, b"[" * 100_000),
        ("models/model.json", b"[]"),
        ("models/model.json", b"{}"),
        ("models/model.json", b"null"),
        ("models/model.json", b"[" * 100_000),
        ("models/model.json", b'{"guards_code": 3}'),
        ("models/model.json", b'{"a": {"expr_str": 3}}'),
        ("data/weights/weight_0", b"123"),
        ("archive_format", b"other"),
        ("archive_version", b"99"),
        ("sample_inputs/model.pt", b"123"),
    ],
)
def test_broken_archives(tmp_path: Path, part: str, data: bytes) -> None:
    """Entries that are not what they should be are refused by the check or the load, by the file, in one line."""
    path = put_file(tmp_path, "model.pt2", with_entry(part, data))

    with pytest.raises(ConfigurationError, match=f"^{path}: ") as refused:  # noqa: PT012 - either may find it
        ENGINE.check(Source(path))
        ENGINE.load(Source(path), 1)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["models/model.json", WEIGHTS, "data/sample_inputs/model.pt", "archive_format"])
def test_missing_entries(tmp_path: Path, part: str) -> None:
    """An archive that lacks a part is refused by the file."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content("model.pt2"))) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            if not name.endswith(part):
                new.writestr(name, old.read(name))
    path = put_file(tmp_path, "model.pt2", made.getvalue())

    with pytest.raises(ConfigurationError, match=f"^{path}: "):  # noqa: PT012 - either may find it
        ENGINE.check(Source(path))
        ENGINE.load(Source(path), 1)


def compressed(change: Callable[[str, bytes], bytes] = lambda _, data: data) -> bytes:
    """The plain program in an archive whose entries are compressed, as torch writes none."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content("model.pt2"))) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return made.getvalue()


def test_compressed(tmp_path: Path) -> None:
    """A compressed archive is refused, or right."""
    path = put_file(tmp_path, "model.pt2", compressed())

    try:
        ENGINE.check(Source(path))
        session = ENGINE.load(Source(path), 1)
    except ConfigurationError as refused:
        assert str(refused).startswith(f"{path}: ")  # noqa: PT017 - either is right
    else:
        came = session.run({"x": np.ones((1, 3), np.float32)})
        np.testing.assert_allclose(answer([[1, 1, 1]]), came[session.outputs[0].name], rtol=1e-5)


@pytest.mark.parametrize("part", ["data/weights/model_weights_config.json", "models/model.json"])
def test_exported_on_a_gpu(tmp_path: Path, part: str) -> None:
    """A program that would load itself onto a GPU, or make tensors there, is refused with what to do."""
    cpu, cuda = b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0'
    path = put_file(
        tmp_path, "model.pt2", changed(content("model.pt2"), lambda name, data: data.replace(cpu, cuda) if name == part else data)
    )
    with pytest.raises(ConfigurationError, match=rf"^{path}: was exported on 'cuda'; export it on the processor"):
        ENGINE.check(Source(path))


@pytest.mark.parametrize("part", [WEIGHTS, "models/model.json", "sample_inputs/model.pt"])
def test_zip_bomb(tmp_path: Path, part: str) -> None:
    """An entry that is a thousand times as large as what the file holds of it is refused, and not unpacked first."""
    size = 100_000_000
    path = put_file(tmp_path, "model.pt2", compressed(lambda name, data: b" " * size + data if name.endswith(part) else data))
    assert path.stat().st_size < size / 500
    tracemalloc.start()

    try:
        with pytest.raises(ConfigurationError, match=f"^{path}: "):
            ENGINE.check(Source(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < size / 4
