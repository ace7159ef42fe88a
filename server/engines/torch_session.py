"""A torch module behind our protocol: numpy in, numpy out. What the engines for torch's forms have in common.

Weights made in the master with one thread are shared by every forked child, whatever number of threads the child runs on,
as long as the master never ran a parallel region of more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from server.engines import torch_compile
from server.engines.engine import Precision, Source
from server.exits import AskedToStopError, ConfigurationError, ExitError
from server.refusals import BadInputError
from server.tensors import FLOATS, Array, Tensors, TensorSpec

DATATYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.bfloat16: "BF16",
}
"""torch's types as the protocol calls them."""

DTYPES: Mapping[str, torch.dtype] = {name: dtype for dtype, name in DATATYPES.items()}

HALVES: Mapping[Precision, torch.dtype] = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class TorchSession:
    """A module that runs without gradients."""

    def __init__(
        self,
        module: torch.nn.Module,
        source: Source,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        positional: int = 0,
        bounds: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Call `module` with its first `positional` inputs by place, the others by name; it gives `outputs` in order or by name.

        `bounds`: the least and the greatest length of an axis, where the module holds for no other.
        Raises `ConfigurationError` naming a tensor that torch has no type for.
        """
        for spec in (*inputs, *outputs):
            if spec.datatype not in DTYPES:
                message = f"{source.path}: {spec.name!r} is {spec.datatype}, which torch has no tensors of"
                raise ConfigurationError(message)
        self.inputs = inputs
        self.outputs = outputs
        self.positional = positional
        self.overlaps = False
        self.bounds = bounds or {}
        if source.precision in HALVES:
            module.to(HALVES[source.precision])
        self.half = _half(module)
        """What it calculates with, if that is half precision; its floats come and go as they are declared."""
        self.compiled = source.compiled
        self.call = torch_compile.compiled(module) if source.compiled else module

    def enter(self, threads: int) -> None:
        """Run on `threads` threads from now on; in the master on one alone, or no later child could run."""
        torch.set_num_threads(threads)

    def settle(self) -> None:
        """What is compiled is compiled: another shape runs as it is written."""
        if self.compiled:
            torch_compile.settle()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once; every answer is the caller's own, and no input is changed.

        Raises `MemoryError` where memory ran out, `BadInputError` naming the axis and its bounds.
        """
        if self.bounds:
            self._check(inputs)
        tensors = {spec.name: self._tensor(inputs[spec.name], spec) for spec in self.inputs}
        placed = [tensors[spec.name] for spec in self.inputs[: self.positional]]
        named = {spec.name: tensors[spec.name] for spec in self.inputs[self.positional :]}
        try:
            with torch.inference_mode():
                given = self._named(self.call(*placed, **named))
        except RuntimeError as error:
            if no_memory(error):
                raise MemoryError(str(error)) from error
            raise
        return {spec.name: self._array(given[spec.name], spec) for spec in self.outputs}

    def _check(self, inputs: Tensors) -> None:
        for spec in self.inputs:
            for axis, length in zip(spec.axes, inputs[spec.name].shape, strict=True):
                least, greatest = self.bounds.get(axis or "", (length, length))
                if not least <= length <= greatest:
                    message = f"axis {axis!r} of {spec.name!r} must be {least} to {greatest}, got {length}"
                    raise BadInputError(message)

    def _tensor(self, array: Array, spec: TensorSpec) -> torch.Tensor:
        # A copy, since a module may write into what it gets, and what a client sent is looked at again.
        placed = np.array(array, order="C")
        if spec.datatype == "BF16":
            tensor = torch.from_numpy(placed.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(placed)
        return tensor.to(self.half) if self.half and spec.datatype in FLOATS else tensor

    def _array(self, tensor: torch.Tensor, spec: TensorSpec) -> Array:
        if tensor.dtype in HALVES.values() and spec.datatype in FLOATS:
            tensor = tensor.to(DTYPES[spec.datatype])
        # A copy again: it may be a weight, a view of one, or an input that is given back.
        owned = tensor.detach().clone(memory_format=torch.contiguous_format)
        if owned.dtype is torch.bfloat16:
            raw: Array = owned.view(torch.int16).numpy()
            return raw.view(ml_dtypes.bfloat16)
        array: Array = owned.numpy()
        return array

    def _named(self, given: Any) -> Mapping[str, torch.Tensor]:
        names = [spec.name for spec in self.outputs]
        if isinstance(given, torch.Tensor):
            given = (given,)
        if not isinstance(given, Mapping):
            if not isinstance(given, Sequence) or len(given) != len(names):
                came = f"{len(given)} values" if isinstance(given, Sequence) else type(given).__name__
                message = f"the module gave {came}, its outputs are {', '.join(names)}"
                raise TypeError(message)
            given = dict(zip(names, given, strict=True))
        found = {name: tensor for name, tensor in given.items() if isinstance(tensor, torch.Tensor)}
        missing = [name for name in names if name not in found]
        if missing:
            message = f"the module gave {', '.join(map(str, given))}, with no tensor {missing[0]!r} among them"
            raise TypeError(message)
        return found


def declared(source: Source, why: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The tensors that `model.toml` declares; raise `ConfigurationError` saying `why` it must where it does not."""
    if not source.inputs or not source.outputs:
        missing = "inputs" if not source.inputs else "outputs"
        message = f"{source.path}: {why}, so model.toml must have [[{missing}]] or [[model.{missing}]]"
        raise ConfigurationError(message)
    return source.inputs, source.outputs


def refusal(path: Path, error: BaseException, what: str) -> BaseException:
    """What a failed load of `path` is to be raised as: an end as it is, memory that ran out, or a file that is not `what`."""
    if isinstance(error, (AskedToStopError, ExitError, MemoryError)):
        return error
    if no_memory(error):
        return MemoryError(str(error))
    return ConfigurationError(f"{path}: {what}: {' '.join(str(error).split())[:300]}")


def no_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch says in words alone on the CPU."""
    return "DefaultCPUAllocator: can't allocate memory" in str(error) or "bad_alloc" in str(error)


def _half(module: torch.nn.Module) -> torch.dtype | None:
    """The half precision that all of a module's weights are in, if they are."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(HALVES.values()) else None
