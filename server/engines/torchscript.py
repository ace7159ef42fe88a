"""TorchScript: a program of torch's own in a file, run without Python."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from server.engines.engine import Rung, Source
from server.engines.torch_cuda import no_cuda
from server.engines.torch_session import TorchSession, declared, refusal
from server.exits import ConfigurationError

NOT_TORCHSCRIPT = "not TorchScript"
NUMBER = 8
"""Bytes, at most."""
UNSAID = "TorchScript does not say what shapes it takes"


class TorchScript:
    """The engine for `.pt` files."""

    platform = "pytorch_torchscript"

    def no_gpu(self, path: Path) -> str:
        """Where torch has no CUDA, or the program was traced with what stays on the processor: tensors, or where to make them."""
        with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            code = (archive.read(info) for entry, info in entries.items() if entry.startswith("code/"))
            # Those of one number are numbers to torch, wherever they are.
            held = any(entry.startswith("constants/") and info.file_size > NUMBER for entry, info in entries.items())
            if held or any(b'torch.device("cpu")' in text for text in code):
                return "its program has tensors of the processor in it; torch.export (.pt2) has none"
        return no_cuda()

    def check(self, source: Source) -> None:
        """Look that the archive holds a program: a state dict is a pickle, which is never loaded as one."""
        path = source.path
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [name.partition("/")[2] for name in archive.namelist()]
        except Exception as error:  # noqa: BLE001 - zipfile raises much besides BadZipFile
            raise refusal(path, error, f"{NOT_TORCHSCRIPT}: no zip archive; a pickle is never loaded") from None
        if "constants.pkl" not in entries or not any(entry.startswith("code/") for entry in entries):
            message = f"{path}: {NOT_TORCHSCRIPT}: it holds no code; weights alone are .pth or .safetensors, with module()"
            raise ConfigurationError(message)
        if source.compiled:
            message = f"{path}: [torch] compile: TorchScript is compiled already; torch.compile takes .pt2 or a module()"
            raise ConfigurationError(message)
        declared(source, UNSAID)

    def rungs(self, source: Source, threads: int) -> Sequence[tuple[Rung, str]]:  # noqa: ARG002 - the protocol's
        """Shared live; threads are a matter of the process that runs it."""
        return [(Rung.LIVE, ""), (Rung.PRIVATE, "")]

    def load(self, source: Source, threads: int) -> TorchSession:  # noqa: ARG002 - `enter` sets them
        """Read the program; raises `ConfigurationError` naming the file if torch refuses it or its tensors are others."""
        inputs, outputs = declared(source, UNSAID)
        try:
            module = torch.jit.load(source.path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise refusal(source.path, error, NOT_TORCHSCRIPT) from error
        arguments = module.forward.schema.arguments[1:]
        known = {argument.name for argument in arguments}
        needed = {argument.name for argument in arguments if not argument.has_default_value()}
        named = {spec.name for spec in inputs}
        if not needed <= named <= known:
            message = f"{source.path}: forward takes {', '.join(sorted(known))}, model.toml has {', '.join(sorted(named))}"
            raise ConfigurationError(message)
        return TorchSession(module, source, inputs, outputs)


ENGINE = TorchScript()
