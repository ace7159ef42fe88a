"""The model repository on disk: `<models>/<model>/model.toml` and `<models>/<model>/<version>/…`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.exits import ConfigurationError
from server.models import schema
from server.models.schema import ModelToml
from server.scoreboard import MAX_MODELS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[1-9]\d{0,8}")
_NOT_MODELS = frozenset({"lost+found"})  # the root of a mounted disk has it

MOST_FILES = 100_000
"""Below the folder of a model: a link may lead anywhere."""

Stamp = tuple[tuple[str, int, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One version of one model on disk, found but not loaded."""

    name: str
    version: int
    folder: Path
    """The version's folder."""
    toml: ModelToml

    @property
    def key(self) -> str:
        """`name/version`, which is also its label in the log."""
        return f"{self.name}/{self.version}"

    @property
    def path(self) -> Path:
        """The model itself."""
        return self.folder / self.toml.file

    @property
    def python(self) -> Path | None:
        """The operator's Python, if there is any."""
        return self.folder / self.toml.python if self.toml.python else None

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer, if the model takes text."""
        return self.folder / self.toml.text.tokenizer if self.toml.text else None

    @property
    def golden(self) -> list[Path]:
        """The golden samples."""
        return [self.folder.parent / name for name in self.toml.golden]

    def stamp(self) -> Stamp:
        """Device, inode, size and times of all that is in the model's folder, so that two loads can be known to read the same.

        Other versions are left out. Raises `ConfigurationError` for more than `MOST_FILES`.
        """
        others = {entry for entry in self.folder.parent.iterdir() if _VERSION.fullmatch(entry.name)} - {self.folder}
        files = {*_below(self.folder.parent, others), *self.golden}
        return tuple(sorted(_stamp(path) for path in files if path.suffix != ".pyc" and (path.is_symlink() or path.is_file())))

    def check(self) -> None:
        """Raise `ConfigurationError` unless every file that is named is there, is a file, can be read and is not empty."""
        for path in filter(None, (self.path, self.python, self.tokenizer, *self.golden)):
            try:
                if path.exists() and not path.is_file():  # opening a pipe would wait for ever
                    message = f"{path}: is not a file"
                    raise ConfigurationError(message)
                with path.open("rb") as file:
                    empty = not file.read(1)
            except OSError as error:
                message = f"{path}: {error.strerror}"
                raise ConfigurationError(message) from None
            if empty:
                message = f"{path}: the file is empty"
                raise ConfigurationError(message)


def scan(root: Path) -> list[ModelFiles]:
    """Find every model and version to serve, in the order of their names.

    Raises `ConfigurationError` naming the path and the rule for a folder that is not a model, or where there is none.
    """
    if not root.is_dir():
        message = f"{root}: no such model repository (WARMFORK_MODELS)"
        raise ConfigurationError(message)
    found = [files for folder in sorted(root.iterdir()) if _is_model(folder) for files in _versions(folder)]
    if not 1 <= len(found) <= MAX_MODELS:
        message = f"{root}: holds {len(found)} models to serve, must be 1 to {MAX_MODELS}"
        raise ConfigurationError(message)
    for files in found:
        files.check()
    return found


def _is_model(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and folder.name not in _NOT_MODELS


def _versions(folder: Path) -> Iterator[ModelFiles]:
    if not _NAME.fullmatch(folder.name):
        message = f"{folder}: a model's name must match {_NAME.pattern}"
        raise ConfigurationError(message)
    toml = schema.read(folder / "model.toml") if (folder / "model.toml").exists() else ModelToml()
    present = {int(entry.name): entry for entry in folder.iterdir() if entry.is_dir() and _VERSION.fullmatch(entry.name)}
    if not present:
        message = f"{folder}: has no version, which is a folder named by a positive integer"
        raise ConfigurationError(message)
    for version in sorted(set(toml.versions or [max(present)])):
        if version not in present:
            message = f"{folder / 'model.toml'}: versions names {version}, on disk are {', '.join(map(str, sorted(present)))}"
            raise ConfigurationError(message)
        yield ModelFiles(folder.name, version, present[version], toml)


def _below(folder: Path, without: set[Path]) -> list[Path]:
    """All files below a folder and all links to folders, what is behind those as well; no folder is gone through twice."""
    found: list[Path] = []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if Path(place) in without or (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += (Path(place, name) for name in names)
        found += (Path(place, name) for name in folders if Path(place, name).is_symlink())
        if len(found) > MOST_FILES:
            message = f"{folder}: holds {len(found)} files or more, links followed; may hold {MOST_FILES}"
            raise ConfigurationError(message)
    return found


def _stamp(path: Path) -> tuple[str, int, int, int, int, int]:
    """Of a file behind a link, or of a link to a folder. The last time is one that nobody can set."""
    status = path.stat() if path.is_file() else path.lstat()
    return str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
