"""The folder of models: what is missing is made beside its place and moved there whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

WRITERS: Mapping[str, str] = {
    "filetype": "demo.filetype.make",
    "embed": "demo.embed.make",
    "resnet50": "demo.resnet50",
    "resnet50_torch": "demo.resnet50_torch.make",
}
"""The module that writes each model, imported only when that is to be made: `write(folder)` fills an empty folder."""

WORKSHOP = ".making"
"""Where models are made, inside the target: the same file system, so that a rename moves them, and no model's name."""


@dataclass(frozen=True, slots=True)
class Made:
    """A model that was made: its size in bytes and the seconds it took."""

    name: str
    size: int
    seconds: float


def make(target: Path, names: Sequence[str], *, force: bool = False) -> list[Made]:
    """Make the models of `names` that `target` lacks, or all of them with `force`, and return those made.

    Safe to interrupt at any point and to run twice at once: a model's folder is there whole or not at all.
    """
    if not force and all((target / name).is_dir() for name in names):
        return []
    target.mkdir(parents=True, exist_ok=True)
    with _workshop(target) as workshop:
        # Looked at again, since another run may have made it while this one waited for the lock.
        return [_make(workshop, target / name) for name in names if force or not (target / name).is_dir()]


def _make(workshop: Path, place: Path) -> Made:
    """Make one model in the workshop and move it to its place; one that stood there goes."""
    started = time.monotonic()
    folder = workshop / place.name
    folder.mkdir()
    write: Callable[[Path], None] = import_module(WRITERS[place.name]).write
    write(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if place.exists():
        place.rename(workshop / f"{place.name}.old")
    folder.rename(place)
    return Made(place.name, size, time.monotonic() - started)


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """Give an empty folder that this run has alone and that is gone afterwards, also what a killed run left in it."""
    workshop = target / WORKSHOP
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        try:
            yield workshop
        finally:
            shutil.rmtree(workshop)
    finally:
        os.close(descriptor)
