"""Which GPUs there are, and who holds how much of them: files in a folder that all processes of a test know."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SETTING = "FAKE_GPUS"
"""The environment's name for that folder."""
ROOT = Path(__file__).parents[2]
CONTEXT = 1 << 20
"""Bytes of a CUDA context."""


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG device of the one before it that is none."""

    uuid: str
    total: int = 256 << 20
    used: int = 0
    """Bytes that somebody else holds."""
    capability: tuple[int, int] = (9, 0)
    mig: tuple[str, ...] = ()
    """UUIDs of its MIG devices, where it is in MIG mode."""


class Machine:
    """A folder of GPUs."""

    def __init__(self, folder: Path) -> None:
        """Look into `folder`."""
        self.folder = folder

    @classmethod
    def here(cls) -> Machine:
        """The one that this process is to see."""
        return cls(Path(os.environ[SETTING]))

    @classmethod
    def make(cls, folder: Path, *devices: Device) -> Machine:
        """One of `devices`."""
        (folder / "held").mkdir(parents=True)
        made = cls(folder)
        made.have(*devices)
        return made

    @property
    def environ(self) -> Mapping[str, str]:
        """What a process has in its environment to see it."""
        return {SETTING: str(self.folder), "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fake_gpu"), str(ROOT)])}

    def have(self, *devices: Device) -> None:
        """Have these from now on."""
        new = self.folder / "new"
        new.write_text(json.dumps([asdict(device) for device in devices]), encoding="ascii")
        new.replace(self.folder / "gpus")

    @property
    def devices(self) -> list[Device]:
        """Its GPUs."""
        listed = json.loads((self.folder / "gpus").read_text(encoding="ascii"))
        return [Device(**{**each, "capability": tuple(each["capability"]), "mig": tuple(each["mig"])}) for each in listed]

    def hold(self, uuid: str, count: int) -> None:
        """This process holds so many bytes of a GPU by now."""
        (self.folder / "held" / str(os.getpid())).write_text(f"{uuid} {count}", encoding="ascii")

    def held(self, uuid: str) -> dict[int, int]:
        """Bytes of a GPU by process, of those that live."""
        found = {}
        for path in (self.folder / "held").iterdir():
            name, _, count = path.read_text(encoding="ascii").partition(" ")
            if name == uuid and _lives(path.name):
                found[int(path.name)] = int(count)
        return found

    def used(self, uuid: str) -> int:
        """Bytes of a GPU that anybody holds."""
        device = next(device for device in self.devices if uuid in (device.uuid, *device.mig))
        return device.used + sum(self.held(uuid).values())

    @property
    def seen(self) -> set[int]:
        """Every process that has ever initialised CUDA."""
        return {int(path.name) for path in (self.folder / "held").iterdir()}

    def lose(self, uuid: str, *, lost: bool = True) -> None:
        """Have every call on a GPU fail from now on, or no longer."""
        path = self.folder / f"lost {uuid}"
        if lost:
            path.touch()
        else:
            path.unlink()

    def lost(self, uuid: str) -> bool:
        """Whether calls on a GPU fail."""
        return (self.folder / f"lost {uuid}").exists()


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False
