"""`torch.compile`, once for all: what a trial has compiled lies on disk, and every worker and later start finds it there.

The cache holds native code and pickles of torch's own, so it lies where none but the server's user can write.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import torch

from server.engines.engine import COMPILED
from server.exits import ConfigurationError
from server.scoreboard import MAX_MODELS, MAX_SHAPES


def prepare() -> None:
    """Import the compiler, which takes seconds, and tell it where and how.

    Raises `ConfigurationError` for an unfit folder, or where there is no compiler for C++.
    """
    os.environ[COMPILED] = str(folder(os.environ.get(COMPILED)))  # before these imports, or they make one as they like
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(os.environ[COMPILED]) / "triton"))  # what is compiled for GPUs
    from torch._dynamo import config as dynamo  # noqa: PLC0415 - a second and tens of megabytes, paid by those that compile
    from torch._inductor import compile_fx  # noqa: F401, PLC0415 - likewise
    from torch._inductor import config as inductor  # noqa: PLC0415 - likewise
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - likewise

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        message = f"[torch] compile needs a C++ compiler, also for what is compiled already: {error} (CXX)"
        raise ConfigurationError(message) from error
    inductor.compile_threads = 1  # no pool of processes in a server
    # Networks of one class share a bound, and are models of their own.
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = MAX_SHAPES * MAX_MODELS
    dynamo.fail_on_recompile_limit_hit = True


def compiled(module: torch.nn.Module) -> Any:
    """The module, to be compiled for each shape that it meets first; raises as `prepare` does."""
    prepare()
    return torch.compile(module, dynamic=False)


def settle() -> None:
    """Compile no more in this process: what is not compiled runs as it is written."""
    torch.compiler.set_stance("eager_on_recompile")


def folder(given: str | None) -> Path:
    """Where compiled code lies, made if it is missing.

    Raises `ConfigurationError` naming the folder and the rule if another user could write there: what lies in it is run.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(given) if given else Path(home).expanduser() / "warmfork" / "torch"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        message = f"{path}: compiled code cannot be kept here ({COMPILED}): {error.strerror}"
        raise ConfigurationError(message) from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        message = f"{path}: compiled code is run from here ({COMPILED}), so none but this user may own it and write to it"
        raise ConfigurationError(message)
    if not os.access(path, os.W_OK | os.X_OK):
        message = f"{path}: compiled code cannot be kept here ({COMPILED}): it cannot be written to"
        raise ConfigurationError(message)
    return path
