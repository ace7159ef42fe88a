"""The GPUs that this server may use, as NVML knows them: CUDA itself would make the process unfit to fork.

The master asks in a process that ends (`server/nvml.py`), since a driver may hang.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from server.exits import ConfigurationError, ResourceError

_log = logging.getLogger("gunicorn.error")

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""CUDA's own setting, read by it once in each process."""
SECONDS = 60.0
"""How long NVML may take: a driver that no process keeps awake takes seconds to start, for each GPU."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU, or a MIG device of one."""

    uuid: str
    """By which CUDA finds it whatever else is visible: `GPU-…` or `MIG-…`."""
    name: str
    """The product."""
    total: int
    """Bytes of its memory."""
    used: int
    """Bytes that somebody held when it was asked."""
    capability: tuple[int, int]
    """What it can calculate, in CUDA's words: its compute capability."""
    index: int = 0
    """Its place among the visible ones."""

    @property
    def device(self) -> str:
        """Its name in `WARMFORK_DEVICE`, on the scoreboard and in `ps`."""
        return f"cuda:{self.index}"


class Allotment(msgspec.Struct, frozen=True):
    """What a process may use of the one GPU that it sees."""

    gpu: Gpu
    bytes: int
    """Of its memory."""


def allot(gpus: Sequence[Gpu], index: int, workers: int, headroom: float) -> Allotment:
    """The share of one of `workers`, who are spread over `gpus`, in the one at `index`; of each `headroom` is left."""
    together = -(-workers // len(gpus))
    return Allotment(gpus[index], int(gpus[index].total * (1 - headroom)) // together)


def find(seconds: float = SECONDS) -> list[list[Gpu]]:
    """All GPUs of the machine by NVML's index, which is that of nvidia-smi; of one in MIG mode its MIG devices.

    Empty where there is no NVIDIA driver. Raises `ResourceError` saying what NVML says, or that it says nothing for `seconds`.
    """
    command, root, pipe = [sys.executable, "-m", "server.nvml"], Path(__file__).parents[1], subprocess.PIPE
    asked = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)  # noqa: S603
    try:
        told, why = asked.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        message = f"NVML did not say in {seconds:g} s which GPUs there are"
        raise ResourceError(message) from None
    finally:  # a signal may end the wait as well
        if asked.returncode is None:
            asked.kill()
            with suppress(subprocess.TimeoutExpired):  # who hangs in a driver may not even die
                asked.communicate(timeout=1)
    said = why.decode(errors="replace").strip()
    if asked.returncode:
        message = f"NVML: {said.rpartition(chr(10))[2] or f'who asked it ended with {asked.returncode}'}"
        raise ResourceError(message)
    if said:
        _log.warning("NVML: %s", said)
    return msgspec.json.decode(told, type=list[list[Gpu]])


def visible(gpus: Sequence[Sequence[Gpu]], environ: Mapping[str, str]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` lets us see, in its order: indices, UUIDs or beginnings of UUIDs.

    As CUDA reads it, one that is not there (-1, say) ends the list; but an index is nvidia-smi's, and that of a GPU in MIG mode
    stands for all its MIG devices.
    """
    found: dict[str, Gpu] = {}
    given = environ.get(VISIBLE)
    for entry in map(str, range(len(gpus))) if given is None else map(str.strip, given.split(",")):
        named = list(_named(gpus, entry))
        if not named and not (entry.isdecimal() and int(entry) < len(gpus)):  # one that is broken is passed over
            break
        found |= {each.uuid: each for each in named}
    return [msgspec.structs.replace(each, index=index) for index, each in enumerate(found.values())]


def chosen(device: str, environ: Mapping[str, str], seconds: float = SECONDS) -> tuple[Gpu, ...]:
    """The GPUs that `WARMFORK_DEVICE` means: none for `cpu`, nor for `auto` where there are none, or NVML fails.

    Raises `ResourceError` naming the setting where one is asked for that is not there, or NVML fails; `ConfigurationError` where
    they differ, since what a trial finds on one must hold on all.
    """
    if device == "cpu":
        return ()
    try:
        found = visible(find(seconds), environ)
    except ResourceError as error:
        message = f"WARMFORK_DEVICE={device}: {error}"
        if device == "auto":
            _log.warning("%s; models run on the processor", message)
            return ()
        raise ResourceError(message) from None
    _, _, number = device.partition(":")
    if device != "auto" and int(number or 0) >= len(found):
        restriction = f" with {VISIBLE}={environ[VISIBLE]}" if VISIBLE in environ else ""
        message = f"WARMFORK_DEVICE={device}: no such GPU{restriction}; there are {len(found)}"
        raise ResourceError(message)
    meant = (found[int(number)],) if number else tuple(found)
    if len({(gpu.capability, gpu.total) for gpu in meant}) > 1:
        kinds = ", ".join(f"{gpu.device} {gpu.name} {gpu.total >> 20} MiB" for gpu in meant)
        message = f"WARMFORK_DEVICE={device}: GPUs must be alike, there are {kinds}; pick with {VISIBLE} or cuda:N"
        raise ConfigurationError(message)
    return meant


def see(gpu: Gpu | None) -> None:
    """Let this process, and its children, see no other GPU, or none. Before it uses CUDA, which then calls it `cuda:0`."""
    os.environ[VISIBLE] = gpu.uuid if gpu else ""


def _named(gpus: Sequence[Sequence[Gpu]], entry: str) -> Iterator[Gpu]:
    if entry.isdecimal():
        yield from gpus[int(entry)] if int(entry) < len(gpus) else ()
    elif entry:
        yield from (each for devices in gpus for each in devices if each.uuid.startswith(entry))
