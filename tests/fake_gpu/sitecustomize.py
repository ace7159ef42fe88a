"""Python runs this at its start: the engine for torch on GPUs gets the torch of `cuda.py`, the real one a `LibCuda`.

With the latter, all that would initialise CUDA (`torch.cuda.init()`, a tensor's `cuda()`) initialises that.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

ENGINE, CUDA = ("server.engines.torch_cuda", "server.engines.torch_faults", "server.engines.torch_weights"), "torch.cuda"


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ in ENGINE:
            vars(module)["torch"] = importlib.import_module("tests.fake_gpu.cuda").Torch()
        elif driver := os.environ.get("FAKE_LIBCUDA"):
            vars(module)["_lazy_init"] = lambda: ctypes.CDLL(driver).cuInit(0)


class _Finder:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name in (*ENGINE, CUDA) else None
        if found and found.origin:
            found.loader = _Loader(name, found.origin)
        return found


sys.meta_path.insert(0, _Finder())
