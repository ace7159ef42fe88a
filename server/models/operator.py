"""The operator's own Python beside a model: what comes before and after it.

The repository is the operator's and trusted. Its Python runs in a throw-away child first all the same: it may hang.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from server.exits import AskedToStopError, ConfigurationError, ExitError
from server.models.repository import ModelFiles
from server.tensors import Array

_numbers = itertools.count()

Preprocess = Callable[[dict[str, Array]], dict[str, Array]]
Postprocess = Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class OperatorPython:
    """What comes before and after the model, and in torch the network itself. Any may be absent."""

    preprocess: Preprocess | None = None
    """Gives the model's inputs, or what its tokenizer takes, for what clients send."""
    postprocess: Postprocess | None = None
    """Gives what clients get for the model's outputs and what they sent."""
    module: Callable[[], Any] | None = None
    """Makes the `torch.nn.Module` that the model's file holds the weights of."""
    name: str = field(default="", compare=False)
    """Of its module in `sys.modules`."""


def load(files: ModelFiles) -> OperatorPython:
    """Import the operator's Python of one model version.

    Raises `ConfigurationError` naming the file if it cannot be imported or has none of the functions. Whatever else the module
    does at its import (ending the process, hanging, starting a thread) is for the trial to find out.
    """
    path = files.python
    if path is None:
        return OperatorPython()
    # Unique, since two generations hold their own, and without a dot that would make it a submodule.
    name = f"warmfork_model_{files.key.encode().hex()}_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        message = f"{path}: is not a Python file"
        raise ConfigurationError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.dont_write_bytecode = True  # from now on: the repository is not ours, and what lies there may import more of it later
    try:
        spec.loader.exec_module(module)
        found = _functions(files, module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, AskedToStopError | ExitError | MemoryError):  # the deadline of who loads, or no fault of the file
            raise
        message = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigurationError(message) from error
    # Whoever looks a class or function up by its module finds it (torch.compile does), until nobody holds it or it is let go.
    weakref.finalize(found, let_go, name)
    return found


def let_go(name: str) -> None:
    """Take a module out of `sys.modules`: nobody needs it any more.

    By itself it would stay if anything in it led back to who holds it. An exception that it has kept does, by the frames of its
    import.
    """
    sys.modules.pop(name, None)


def _functions(files: ModelFiles, module: ModuleType) -> OperatorPython:
    found = {name: getattr(module, name, None) for name in ("preprocess", "postprocess", "module")}
    wrong = [name for name, function in found.items() if function is not None and not callable(function)]
    if wrong or not any(found.values()):
        message = f"{files.python}: must define preprocess(inputs), postprocess(outputs, inputs) or module()"
        raise ConfigurationError(message)
    return OperatorPython(**found, name=module.__name__)
