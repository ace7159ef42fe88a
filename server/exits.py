"""How the server ends: one exception per exit status of the contract, each with the one line that says why."""

from __future__ import annotations

import sys
from typing import ClassVar, NoReturn

LONGEST_LINE = 1000


def one_line(text: str) -> str:
    """`text` as one line that any log can take, cut to `LONGEST_LINE` characters."""
    return " ".join(text.split())[:LONGEST_LINE].encode("utf-8", "backslashreplace").decode()


class ExitError(Exception):
    """Something that ends a start, or refuses a reload. The message is made one line."""

    status: ClassVar[int] = 70

    def __init__(self, line: str) -> None:
        """Say why."""
        super().__init__(one_line(line))


class ConfigurationError(ExitError):
    """A setting or the model repository is wrong."""

    status = 78


class ModelError(ExitError):
    """A model loads, warms up or answers wrongly; the line says which model, which shape, which check."""

    status = 70


class UnshareableError(ModelError):
    """A child did not survive what it was given; another way of sharing the model may hold."""


class ResourceError(ExitError):
    """Memory or a device is missing; trying again may help."""

    status = 75


class GpuMemoryError(MemoryError):
    """Memory of a GPU, or a process's share of it, ran out; says how much there is."""


class GpuFullError(GpuMemoryError):
    """Others hold what this process may take of a GPU."""


class GpuLostError(RuntimeError):
    """An error of a GPU after which no call of this process on it succeeds any more; another process's may."""


class AskedToStopError(SystemExit):
    """A signal asked the master to stop while it loads: status 0, and not the `SystemExit` of some model's Python."""


def by_status(status: int, line: str) -> ExitError:
    """The exception that a process which ended with `status` would have raised."""
    for kind in (ConfigurationError, ResourceError):
        if kind.status == status:
            return kind(line)
    return ModelError(line)


def leave(error: ExitError) -> NoReturn:
    """Say why on standard error, in one line, and end with the error's status."""
    sys.stderr.write(f"warmfork: {error}\n")
    sys.stderr.flush()
    sys.exit(error.status)
