"""Which engine runs which file. Each is imported when its first model is met, so that nobody pays for one that is not used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from server.engines.engine import Engine
from server.exits import ConfigurationError

ENGINES: Mapping[str, str] = {
    ".onnx": "server.engines.onnxruntime",
    ".pt": "server.engines.torchscript",
    ".pt2": "server.engines.torch_export",
    ".pth": "server.engines.torch_module",
    ".safetensors": "server.engines.torch_module",
}
"""File ending to the module that has an `ENGINE`."""


def engine_for(path: Path) -> Engine:
    """The engine for a model file, by its ending.

    Raises `ConfigurationError` naming the endings that there are, or the library that the engine lacks.
    """
    if path.suffix not in ENGINES:
        message = f"{path}: no engine runs {path.suffix or 'a file without ending'}; there are {', '.join(ENGINES)}"
        raise ConfigurationError(message)
    try:
        engine: Engine = importlib.import_module(ENGINES[path.suffix]).ENGINE
    except ModuleNotFoundError as error:
        message = f"{path}: the engine for {path.suffix} needs {error.name}, which is not installed (see pyproject.toml)"
        raise ConfigurationError(message) from None
    return engine
