"""TorchScript: a program of torch's own in a file, run without Python."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import torch

from server.engines.engine import Rung, Source
from server.engines.torch_session import TorchSession, declared, refusal
from server.exits import ConfigurationError

NOT_TORCHSCRIPT = "not TorchScript"
UNSAID = "TorchScript does not say what shapes it takes"


class TorchScript:
    """The engine for `.pt` files."""

    platform = "pytorch_torchscript"

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
