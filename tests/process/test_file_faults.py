"""What lies in the repository: files that are wrong are refused by name and never executed, good ones are served as they say."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from tests.models import BATCHED, dense, failing, graph, identity, put
from tests.server import Server

FILE = r"\S*/m/1/model\.onnx: "
TOML = r"\S*/m/model\.toml: "


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        """Make `file`."""
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        """What a pickle of this runs."""
        return os.mkdir, (str(self.file),)


def _toml(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.toml").write_text(text, encoding="utf-8")


def _file(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "1" / "model.onnx").write_bytes(content)


def _folder_in_place_of_the_file(folder: Path) -> None:
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").mkdir()


def _truncated(folder: Path) -> None:
    file = folder / "1" / "model.onnx"
    os.truncate(file, file.stat().st_size // 2)


def _replaced(folder: Path) -> None:
    touch = "os.utime(__file__.replace('model.py', 'model.onnx'), (1, 1))"
    (folder / "1" / "model.py").write_text(failing("trial", touch), encoding="utf-8")
    _toml(f'python = "model.py"\n{BATCHED}')(folder)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "1" / "model.onnx").unlink(), f"{FILE}No such file"),
    "empty": (_file(b""), f"{FILE}the file is empty"),
    "truncated": (_truncated, f"{FILE}not an ONNX model"),
    "text": (_file(b"weights, surely\n"), f"{FILE}not an ONNX model"),
    "pickle": (lambda folder: _file(pickle.dumps(Trap(folder.parent / "sprung")))(folder), f"{FILE}not an ONNX model"),
    "folder": (_folder_in_place_of_the_file, f"{FILE}is not a file"),
    "replaced": (_replaced, f"{FILE}changed while it was being loaded"),
    "ending": (
        lambda folder: (_toml('file = "model.pkl"\n')(folder), (folder / "1" / "model.pkl").write_bytes(b"x")),
        r"\S*/m/1/model\.pkl: no engine runs \.pkl; there are \.onnx",
    ),
    "key": (_toml("bach_sizes = [1]\n"), f"{TOML}unknown key 'bach_sizes'; the nearest known one is 'batch_sizes'"),
    "climbing": (_toml('file = "../../model.onnx"\n'), f"{TOML}.*file"),
    "syntax": (_toml("batch_sizes = [1\n"), f"{TOML}Unclosed array"),
    "type": (_toml('batch_sizes = "many"\n'), f"{TOML}.*batch_sizes"),
    "version": (_toml("versions = [7]\n"), f"{TOML}versions names 7, on disk are 1"),
    "no-version": (lambda folder: shutil.rmtree(folder / "1"), r"\S*/m: has no version"),
    "name": (lambda folder: folder.rename(folder.with_name("_m")), r"\S*/_m: a model's name must match"),
    "no-model": (shutil.rmtree, r"\S*: holds 0 models to serve"),
    "no-repository": (lambda folder: shutil.rmtree(folder.parent), r"\S*: no such model repository \(WARMFORK_MODELS\)"),
    "axis": (_toml("axes = { length = [1] }\n"), r"\S*/m/1: axis 'length' is declared, the model's free axes are 'batch'"),
    "shapes": (
        _toml(f"batch_sizes = {list(range(1, 65))}\naxes = {{ length = {list(range(1, 65))} }}\n"),
        r"\S*/m/1: the model has 4096 declared shapes, at most \d+ can be served",
    ),
}
"""Name: what is done to the folder of a good model, and the one line in the log."""


@pytest.mark.parametrize(("damage", "line"), BROKEN.values(), ids=BROKEN)
def test_broken_files_end_with_78(
    tmp_path: Path, request: pytest.FixtureRequest, damage: Callable[[Path], object], line: str
) -> None:
    """A first start ends with 78 and a line that names the file and the check; nothing in the file was executed."""
    shapes: dict[str, tuple[str, list[int | str | None]]] = {"x": ("FP32", ["batch", "length"])}
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    free = graph([node], shapes, {"y": shapes["x"]})
    damage(put(tmp_path / "models", "m", free if "[shapes]" in request.node.name else identity()))

    Server(tmp_path / "models").ends(78, line)

    assert not (tmp_path / "models" / "sprung").exists()


@pytest.mark.parametrize("name", ["empty", "truncated", "pickle", "replaced", "key", "version", "no-model"])
def test_broken_files_refuse_a_reload(tmp_path: Path, name: str) -> None:
    """The same damage at a reload: what serves goes on, from memory, and the reason says which file and which check."""
    damage, line = BROKEN[name]
    folder = put(tmp_path / "models", "m", identity())

    with Server(tmp_path / "models") as server:
        new = tmp_path / "new"
        shutil.copytree(folder, new / "m")
        damage(new / "m")
        shutil.rmtree(folder)
        if (new / "m").exists():
            (new / "m").rename(folder)
        server.reload(refused=line)
        assert server.infer("m", {"x": ("FP32", [[1, 2, 3]])})[1]["outputs"][0]["data"] == [1, 2, 3]


def _outside(folder: Path) -> Path:
    outside = folder.parents[2] / "outside"
    outside.mkdir()
    return (folder / "weights").rename(outside / "weights")


def _symlinked_folder(folder: Path) -> None:
    (folder / "link").symlink_to(_outside(folder).parent)


ESCAPES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "climbing": ("../../../outside/weights", _outside),
    "absolute": ("{outside}/weights", _outside),
    "symlink": ("weights", lambda folder: (folder / "weights").symlink_to(_outside(folder))),
    "symlinked-folder": ("link/weights", _symlinked_folder),
    "hard-link": ("weights", lambda folder: (folder / "weights").hardlink_to(_outside(folder))),
    "missing": ("weights", _outside),
}
"""Name: the location that the model names, and where its weights are put."""


def _external(models: Path, location: str) -> Path:
    folder = put(models, "m", dense(size=64)) / "1"
    model = onnx.load(folder / "model.onnx")
    convert_model_to_external_data(model, location="weights", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    bare = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in bare.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "model.onnx").write_bytes(bare.SerializeToString())
    return folder


@pytest.mark.parametrize(("location", "place"), ESCAPES.values(), ids=ESCAPES)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str, place: Callable[[Path], object]) -> None:
    """External data that is not a plain file of the model's own folder ends a first start with 78, by its name."""
    models = tmp_path / "models"
    place(_external(models, location.format(outside=tmp_path / "outside")))

    Server(models).ends(78, rf"{FILE}external data '\S+' ")


def test_external_data_inside_the_folder_is_served_live(tmp_path: Path) -> None:
    """External data beside the model is loaded, and the session is shared."""
    _external(tmp_path, "weights")

    with Server(tmp_path) as server:
        assert [model["rung"] for model in server.status()["models"]] == ["live"]
        assert server.infer("m", {"x": ("FP32", [[0.5] * 64])})[0] == 200


def test_versions_that_are_named_are_served(tmp_path: Path) -> None:
    """`versions` names what is served: each by its number, the highest of them by the name alone."""
    for version in (1, 2, 3):
        put(tmp_path, "m", identity(), f"versions = [1, 2]\n{BATCHED}", version=version)

    with Server(tmp_path) as server:
        for path, served in (("m/versions/1", "1"), ("m/versions/2", "2"), ("m", "2")):
            assert server.infer(path, {"x": ("FP32", [[1, 2, 3]])})[1]["model_version"] == served
        assert server.infer("m/versions/3", {"x": ("FP32", [[1, 2, 3]])})[0] == 404


def test_a_lone_file_is_served_and_its_cold_shapes_are_warmed_next_time(tmp_path: Path) -> None:
    """Without `model.toml` a free axis runs as it comes and is counted cold; the next generation has warmed what came."""
    put(tmp_path, "m", identity(), "")

    with Server(tmp_path) as server:

        def cold_of(rows: int) -> int:
            """Cold dispatches that the one worker counts for a request of `rows`."""
            server.wait(lambda: len(server.status()["workers"]) == 1, "one worker")
            before = server.status()["workers"][0]["cold_dispatches"]
            assert server.infer("m", {"x": ("FP32", [[1, 2, 3]] * rows)})[0] == 200
            return int(server.status()["workers"][0]["cold_dispatches"] - before)

        assert (0, 1) == (cold_of(1), cold_of(5))
        server.reload()
        assert [{"batch": 1}, {"batch": 5}] == server.status()["models"][-1]["shapes"]
        assert (0, 0) == (cold_of(1), cold_of(5))
