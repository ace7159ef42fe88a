"""A torch module of the operator's own: the network from `module()` in its Python, the weights from a file beside it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from server.engines import torch_compile
from server.engines.engine import Precision, Rung, Source
from server.engines.torch_cuda import no_cuda
from server.engines.torch_session import TorchSession, declared, refusal
from server.engines.torch_tensors import HALVES
from server.exits import ConfigurationError

UNSAID = "weights do not say what the module takes"

State = Mapping[str, torch.Tensor]


class TorchModule:
    """The engine for `.safetensors` and `.pth` files: state dicts, mapped and never unpickled."""

    platform = "pytorch_module"

    def no_gpu(self, path: Path) -> str:  # noqa: ARG002 - the protocol's
        """Where torch has no CUDA."""
        return no_cuda()

    def check(self, source: Source) -> None:
        """Look that what the file cannot say is said elsewhere."""
        _maker(source)
        declared(source, UNSAID)
        if source.compiled:
            torch_compile.prepare()

    def rungs(self, source: Source, threads: int) -> Sequence[tuple[Rung, str]]:  # noqa: ARG002 - the protocol's
        """Shared live; else mapped, unless another precision makes a copy of them."""
        return [(Rung.LIVE, ""), (Rung.MAPPED if source.precision is Precision.FP32 else Rung.PRIVATE, "")]

    def load(self, source: Source, threads: int) -> TorchSession:  # noqa: ARG002 - `enter` sets them
        """Make the network without weights and give it the file's; raises `ConfigurationError` where they do not fit."""
        inputs, outputs = declared(source, UNSAID)
        module = _hollow(source)
        _fill(module, _state(source.path), source)
        return TorchSession(module, source, inputs, outputs)


ENGINE = TorchModule()


def _maker(source: Source) -> Callable[[], Any]:
    """The operator's `module()`; raises `ConfigurationError` where there is none."""
    if not source.module:
        message = f"{source.path}: holds weights alone, so model.toml must name python with module()"
        raise ConfigurationError(message)
    return source.module


def _hollow(source: Source) -> torch.nn.Module:
    """The network, its parameters on the meta device: they take no memory until they are given.

    Buffers are kept as they are made, since those that are not saved would be lost.
    """
    make = _maker(source)

    def forget(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # one that is tied to another stays tied
            return parameter
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    # Typed as if it gave nothing, but what it gives is registered.
    hook = torch.nn.modules.module.register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]
    try:
        module = make()
    except BaseException as error:
        raise refusal(source.path, error, f"module() raised {type(error).__name__}") from error
    finally:
        hook.remove()
    if not isinstance(module, torch.nn.Module):
        message = f"{source.path}: module() must give a torch.nn.Module, gave {type(module).__name__}"
        raise ConfigurationError(message)
    return module.eval().requires_grad_(requires_grad=False)


def _state(path: Path) -> State:
    """The tensors of a file, mapped; raises `ConfigurationError` naming the file if it is not one of tensors alone."""
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", mmap=True, weights_only=True)
    except SafetensorError as error:
        raise refusal(path, error, "not a whole safetensors file") from error
    except pickle.UnpicklingError as error:
        message = f"{path}: not a state dict: it holds more than tensors, and a pickle is never executed"
        raise ConfigurationError(message) from error
    except Exception as error:
        raise refusal(path, error, "not a state dict") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        message = f"{path}: not a state dict, which is tensors by name, but {type(state).__name__}"
        raise ConfigurationError(message)
    return state


def _fill(module: torch.nn.Module, state: State, source: Source) -> None:
    """Give the network its weights, none missing, none over, none of another shape or kind, tied ones tied."""
    wanted = module.state_dict(keep_vars=True)
    tied: dict[int, str] = {}  # of tied tensors a file may hold one
    for name, tensor in wanted.items():
        if name in state:
            tied.setdefault(id(tensor), name)
    held = {name: tied.get(id(tensor), "") for name, tensor in wanted.items()}
    wrong = [f"tensor {name!r} is missing" for name in wanted if not held[name]]
    wrong += [f"tensor {name!r} is not of this module" for name in state if name not in wanted]
    wrong += filter(None, (_misfit(name, tensor, state[held[name]]) for name, tensor in wanted.items() if held[name]))
    wrong += [
        f"tensor {name!r} is tied to {held[name]!r}, yet differs from it"
        for name in wanted
        if name in state and held[name] != name and not torch.equal(state[name], state[held[name]])
    ]
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        message = f"{source.path}: {wrong[0]}{more}"
        raise ConfigurationError(message)
    half = HALVES.get(source.precision)  # here already, since a file of that width then stays mapped
    weights = {
        name: torch.nn.Parameter(state[name].to(half or wanted[name].dtype), requires_grad=False)
        if isinstance(wanted[name], torch.nn.Parameter) and wanted[name].is_floating_point()
        else state[name].to(wanted[name].dtype)
        for name in set(held.values())
    }
    module.load_state_dict({name: weights[holder] for name, holder in held.items()}, assign=True)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            message = f"{source.path}: {name!r} is in no file, and module() cannot make it from weights, which it has not"
            raise ConfigurationError(message)


def _misfit(name: str, wanted: torch.Tensor, given: torch.Tensor) -> str:
    """Why one cannot be given for the other; empty if it can. Floats of any width can, and are made as wide."""
    if wanted.shape != given.shape:
        return f"tensor {name!r} must have shape {list(wanted.shape)}, has {list(given.shape)}"
    floats = wanted.is_floating_point() and given.is_floating_point()
    if wanted.dtype != given.dtype and not floats:
        return f"tensor {name!r} must be {wanted.dtype}, is {given.dtype}"
    return ""
