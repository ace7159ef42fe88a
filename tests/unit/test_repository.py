"""The model repository on disk: what is found, and what is refused in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.exits import ConfigurationError
from server.models import repository
from server.scoreboard import MAX_MODELS


def put(root: Path, path: str, content: str = "x") -> Path:
    """Write one file of a repository."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def keys(root: Path) -> list[str]:
    """What a scan finds."""
    return [files.key for files in repository.scan(root)]


def refusal(root: Path) -> str:
    """The line in which a scan is refused."""
    with pytest.raises(ConfigurationError) as refused:
        repository.scan(root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_found(tmp_path: Path) -> None:
    """Models come in the order of their names, in their highest version by number; what is no model is passed over."""
    for path in ("b/9/model.onnx", "b/10/model.onnx", "b/010/x", "b/0/x", "b/-1/x", "b/notes/x", "b/11", "A.1-x_y/1/model.onnx"):
        put(tmp_path, path)
    for path in (".git/x", "lost+found/x", "README.md"):
        put(tmp_path, path)

    assert ["A.1-x_y/1", "b/10"] == keys(tmp_path)


def test_versions(tmp_path: Path) -> None:
    """`model.toml` says which versions are served, each once, in order."""
    for version in (1, 2, 10):
        put(tmp_path, f"m/{version}/model.onnx")
    put(tmp_path, "m/model.toml", "versions = [10, 1, 10]")

    assert ["m/1", "m/10"] == keys(tmp_path)


def test_paths(tmp_path: Path) -> None:
    """The model and its Python lie in the version's folder, golden samples in the model's."""
    put(tmp_path, "m/model.toml", 'file = "net/a.onnx"\npython = "p.py"\ngolden = ["g/1.json"]')
    for path in ("m/4/net/a.onnx", "m/4/p.py", "m/g/1.json"):
        put(tmp_path, path)

    found = repository.scan(tmp_path)[0]

    paths = (found.path, found.python, found.golden)
    assert (tmp_path / "m/4/net/a.onnx", tmp_path / "m/4/p.py", [tmp_path / "m/g/1.json"]) == paths
    assert ("m", 4, "m/4") == (found.name, found.version, found.key)


@pytest.mark.parametrize("name", ["_m", "-m", "m m", "m" * 65, "müll", "m\n"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    """A folder that cannot be a model's name is refused, with the rule."""
    put(tmp_path, f"{name}/1/model.onnx")

    with pytest.raises(ConfigurationError, match=r"a model's name must match \[A-Za-z0-9\]"):
        repository.scan(tmp_path)


def test_longest_name(tmp_path: Path) -> None:
    """64 characters are a name."""
    put(tmp_path, f"{'m' * 64}/1/model.onnx")

    assert ["m" * 64 + "/1"] == keys(tmp_path)


def test_refusals(tmp_path: Path) -> None:
    """No repository, an empty one, a model without a version, and one that declares a version that is not there."""
    assert f"{tmp_path / 'no'}: no such model repository (WARMFORK_MODELS)" == refusal(tmp_path / "no")
    assert f"{tmp_path}: holds 0 models to serve, must be 1 to {MAX_MODELS}" == refusal(tmp_path)
    put(tmp_path, "m/notes/x")
    assert f"{tmp_path / 'm'}: has no version" in refusal(tmp_path)
    put(tmp_path, "m/3/model.onnx")
    put(tmp_path, "m/model.toml", "versions = [4]")
    assert f"{tmp_path / 'm/model.toml'}: versions names 4, on disk are 3" == refusal(tmp_path)


def test_too_many(tmp_path: Path) -> None:
    """There are counters for so many models, and not one more."""
    for number in range(MAX_MODELS):
        put(tmp_path, f"m{number}/1/model.onnx")
    assert MAX_MODELS == len(keys(tmp_path))
    put(tmp_path, "one-more/1/model.onnx")

    assert f"holds {MAX_MODELS + 1} models to serve, must be 1 to {MAX_MODELS}" in refusal(tmp_path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("which", ["1/model.onnx", "1/p.py", "g.json"])
@pytest.mark.parametrize("what", ["missing", "empty", "folder", "fifo", "dangling"])
def test_files_that_are_none(tmp_path: Path, which: str, what: str) -> None:
    """A file that is named but missing, empty or no file is refused by its path; looking at it does not hang."""
    put(tmp_path, "m/model.toml", 'python = "p.py"\ngolden = ["g.json"]')
    for name in ("1/model.onnx", "1/p.py", "g.json"):
        put(tmp_path / "m", name)
    path = tmp_path / "m" / which
    path.unlink()
    match what:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")

    assert refusal(tmp_path).startswith(f"{path}: ")


@pytest.mark.parametrize("path", ["m/1/model.onnx", "m/1/sub/weights.bin", "m/g.json", "m/model.toml"])
def test_stamp(tmp_path: Path, path: str) -> None:
    """The stamp is another one once a file has been written, replaced or removed, and the same as long as nothing has."""
    put(tmp_path, "m/model.toml", 'golden = ["g.json"]')
    for name in ("m/1/model.onnx", "m/1/sub/weights.bin", "m/g.json"):
        put(tmp_path, name)
    found = repository.scan(tmp_path)[0]
    first = found.stamp()
    assert first == found.stamp()
    put(tmp_path, "m/1/__pycache__/p.cpython-311.pyc")
    assert first == found.stamp()

    status = (tmp_path / path).stat()
    new = put(tmp_path, "new", (tmp_path / path).read_text(encoding="utf-8"))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(tmp_path / path)

    replaced = found.stamp()
    assert first != replaced
    os.utime(tmp_path / path, ns=(0, 0))
    assert replaced != found.stamp()


def test_stamp_of_what_looks_the_same(tmp_path: Path) -> None:
    """It is another one when a file is written over and its time set back, or a link leads to another folder."""
    for name in ("m/1/a/model.onnx", "m/1/b/model.onnx", "m/labels.txt"):
        put(tmp_path, name)
    link = tmp_path / "m" / "1" / "current"
    link.symlink_to("a")
    (tmp_path / "m" / "1" / "circle").symlink_to("..")
    put(tmp_path, "m/model.toml", 'file = "current/model.onnx"\nversions = [1]')
    found = repository.scan(tmp_path)[0]
    seen = [found.stamp()]
    (tmp_path / "m" / "1" / "next").symlink_to("b")
    seen.append(found.stamp())
    (tmp_path / "m" / "1" / "next").rename(link)
    seen.append(found.stamp())
    for name in ("m/1/a/model.onnx", "m/labels.txt"):
        status = (tmp_path / name).stat()
        content = (tmp_path / name).read_text(encoding="utf-8")
        while put(tmp_path, name, content).stat().st_ctime_ns == status.st_ctime_ns:
            pass  # the clock of a file system may stand still for milliseconds
        os.utime(tmp_path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        seen.append(found.stamp())
    assert len(set(seen)) == len(seen)

    put(tmp_path, "m/2/model.onnx")
    assert found.stamp() == seen[-1]


def test_stamp_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a link leads to more than a model is made of, the folder is refused."""
    monkeypatch.setattr(repository, "MOST_FILES", 3)
    for number in range(4):
        put(tmp_path, f"m/1/{number}")
    put(tmp_path, "m/1/model.onnx")
    with pytest.raises(ConfigurationError, match=r"m: holds \d+ files or more, links followed; may hold 3"):
        repository.scan(tmp_path)[0].stamp()
