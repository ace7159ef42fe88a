"""A torch module behind our protocol: numpy in, numpy out. What the engines for torch's forms have in common.

Weights made in the master with one thread are shared by every forked child, whatever number of threads the child runs on,
as long as the master never ran a parallel region of more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.engines import torch_compile
from server.engines.engine import Source
from server.engines.torch_cuda import CudaModule
from server.engines.torch_tensors import DTYPES, HALVES, view
from server.exits import AskedToStopError, ConfigurationError, ExitError
from server.gpus import Allotment
from server.refusals import BadInputError
from server.tensors import DTYPES as NUMPY
from server.tensors import FLOATS, Array, Tensors, TensorSpec


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
        self.path = source.path
        self.cuda: CudaModule | None = None
        """Where it runs, in a process that has entered it on a GPU."""
        self.bounds = bounds or {}
        if source.precision in HALVES:
            module.to(HALVES[source.precision])
        self.half = _half(module)
        """What it calculates with, if that is half precision; its floats come and go as they are declared."""
        self.compiled = source.compiled
        self.records = source.graphs
        """Whether its shapes may be recorded as CUDA graphs."""
        self.module = module
        self.call = torch_compile.compiled(module) if source.compiled else module

    @property
    def overlaps(self) -> bool:
        """Whether it runs on a GPU."""
        return self.cuda is not None

    @property
    def graphs(self) -> bool:
        """Whether it runs on a GPU, and can be recorded there."""
        return self.cuda is not None and self.cuda.captures

    @property
    def device_ms(self) -> float:
        """How long the GPU took for the last run, by its own events; 0 on the processor."""
        return self.cuda.device_ms if self.cuda else 0.0

    def enter(self, threads: int, gpu: Allotment | None = None) -> None:
        """Run on `threads` threads from now on; in the master on one alone, or no later child could run.

        Or on a `gpu`: the weights are copied there, and this process's part of what it inherited is let go.
        """
        torch.set_num_threads(threads)
        if gpu:
            self.cuda = CudaModule(self.module, self._call, str(self.path), gpu, captures=self.records)

    def settle(self) -> None:
        """What is compiled is compiled, and what has a graph has it: another shape runs as it is written."""
        if self.compiled:
            torch_compile.settle()
        if self.cuda:
            self.cuda.settled = True

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run once; every answer is the caller's own, and no input is changed.

        Raises `MemoryError` where memory ran out, `BadInputError` naming the axis and its bounds.
        """
        if self.bounds:
            self._check(inputs)
        try:
            with torch.inference_mode():
                given = self.cuda.run(inputs, self.inputs) if self.cuda else self._run(inputs)
        except RuntimeError as error:
            if no_memory(error):
                raise MemoryError(str(error)) from error
            raise
        return {name: view(tensor) for name, tensor in given.items()}

    def _run(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """On the processor."""
        given = self._call({spec.name: _tensor(inputs[spec.name]) for spec in self.inputs})
        # A copy again: it may be a weight, a view of one, or an input that is given back.
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in given.items()}

    def _call(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Call the module, wherever it and `tensors` are; every output by name, as wide as it was declared."""
        if self.half:
            floats = {spec.name for spec in self.inputs if spec.datatype in FLOATS}
            tensors = {name: tensor.to(self.half) if name in floats else tensor for name, tensor in tensors.items()}
        placed = [tensors[spec.name] for spec in self.inputs[: self.positional]]
        named = {spec.name: tensors[spec.name] for spec in self.inputs[self.positional :]}
        given = self._named(self.call(*placed, **named))
        return {spec.name: _widened(given[spec.name], spec) for spec in self.outputs}

    def _check(self, inputs: Tensors) -> None:
        for spec in self.inputs:
            for axis, length in zip(spec.axes, inputs[spec.name].shape, strict=True):
                least, greatest = self.bounds.get(axis or "", (length, length))
                if not least <= length <= greatest:
                    message = f"axis {axis!r} of {spec.name!r} must be {least} to {greatest}, got {length}"
                    raise BadInputError(message)

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


def _tensor(array: Array) -> torch.Tensor:
    # A copy, since a module may write into what it gets, and what a client sent is looked at again.
    placed = np.array(array, order="C")
    if placed.dtype == NUMPY["BF16"]:
        return torch.from_numpy(placed.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(placed)


def _widened(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A half as the float that was declared; whatever else it may be is looked at in warmup."""
    return tensor.to(DTYPES[spec.datatype]) if tensor.dtype in HALVES.values() and spec.datatype in FLOATS else tensor


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
