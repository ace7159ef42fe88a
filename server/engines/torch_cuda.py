"""A torch module on the one GPU that this process sees: its weights there once, a CUDA graph per shape, pinned buffers.

To import this is harmless; whoever makes a `CudaModule` has initialised CUDA, and forks no more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from server.engines.torch_faults import lost, out_of_memory
from server.engines.torch_tensors import DTYPES, view
from server.engines.torch_weights import hold
from server.exits import GpuFullError, GpuLostError, ModelError, ResourceError
from server.gpus import Allotment
from server.tensors import Tensors, TensorSpec

RUNS = 3
"""Of a shape before its graph is captured: libraries are loaded, algorithms chosen, workspaces made in them."""

torch.backends.cudnn.allow_tf32 = False  # float32 is float32, unless the operator's Python, which comes later, says otherwise

_ONE = threading.Lock()
"""One runs at a time: they share a GPU, and torch's settings are the process's."""

Named = dict[str, torch.Tensor]

_log = logging.getLogger("gunicorn.error")


def no_cuda() -> str:
    """Why torch can't use a GPU; empty if it can."""
    return "" if torch.version.cuda else f"torch {torch.__version__} is a build for the processor alone"


@dataclass
class _Shape:
    """One shape of inputs: buffers on both sides, and its graph."""

    pins: bool
    """Whether its buffers stay: who comes once does with any memory of the processor."""
    here: Named
    inputs: Named
    """On the GPU."""
    graph: torch.cuda.CUDAGraph | None = None
    outputs: Named = field(default_factory=dict)
    """What the graph writes, on the GPU."""
    answers: Named = field(default_factory=dict)
    """On the processor: where those are copied to."""

    def fill(self) -> None:
        """Copy what comes to the GPU."""
        for name, buffer in self.here.items():
            self.inputs[name].copy_(buffer, non_blocking=True)


class CudaModule:
    """Runs a module on a stream of its own."""

    def __init__(
        self, module: torch.nn.Module, call: Callable[[Named], Named], where: str, gpu: Allotment, *, captures: bool = True
    ) -> None:
        """Copy the weights of `module` to the GPU; `call` runs it on tensors that are there, `where` names it.

        `captures`: whether graphs are tried.

        Whatever torch does in this process, together, may take the bytes of `gpu`; the CUDA context comes on top, some hundred
        megabytes. Raises `ModelError` where they are not enough for the weights, `ResourceError` where CUDA does not start, or
        others hold those bytes.
        """
        self.call = call
        self.where = where
        self.gpu = gpu
        try:
            total = torch.cuda.mem_get_info(0)[1]  # which makes the context
        except (RuntimeError, AssertionError) as error:  # a driver that is too old, a GPU that is another's alone
            message = f"{where}: CUDA on {gpu.gpu.device} ({gpu.gpu.name}): {' '.join(str(error).split())[:300]}"
            raise ResourceError(message) from error
        try:
            torch.cuda.set_per_process_memory_fraction(min(gpu.bytes / total, 1.0))
            hold(module)
        except RuntimeError as error:
            if short := out_of_memory(error, gpu):
                message = f"{where}: its weights: {short}"
                raise (ResourceError if isinstance(short, GpuFullError) else ModelError)(message) from error
            raise
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        """All graphs share it: they run one after another, and what one has given is copied before the next."""
        self.shapes: dict[tuple[tuple[int, ...], ...], _Shape] = {}
        self.settled = False
        """Whether a shape that comes now is cold, and is to cost no more than its run."""
        self.tuned = threading.local()
        """By thread, as cuDNN remembers what it has found best, the shapes that were run before it was settled."""
        self.captures = captures
        """Whether the module allows graphs, as far as is known."""
        self.failed: torch.cuda.CUDAGraph | None = None
        # Who waits for this one sleeps; the loop needs the processor meanwhile.
        self.begun, self.ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def run(self, inputs: Tensors, specs: tuple[TensorSpec, ...]) -> Named:
        """Run on the `inputs` that `specs` names. What is given lies on the processor, and is the caller's own.

        Raises `GpuMemoryError` where memory of the GPU ran out, `GpuLostError` where no later call can succeed.
        """
        try:
            with _ONE, torch.cuda.stream(self.stream):
                answers = self._run(inputs, specs)
                return {name: answer.clone() for name, answer in answers.items()}
        except RuntimeError as error:
            if short := out_of_memory(error, self.gpu):
                raise short from error
            if lost():
                message = f"the GPU is lost to this process: {error}"
                raise GpuLostError(message) from error
            raise

    @property
    def device_ms(self) -> float:
        """How long the GPU took for the last run, copies aside."""
        return float(self.begun.elapsed_time(self.ended))

    def _run(self, inputs: Tensors, specs: tuple[TensorSpec, ...]) -> Named:
        key = tuple(inputs[spec.name].shape for spec in specs)
        shape = self.shapes.get(key)
        cold = shape is None and self.settled
        if shape is None:
            shape = _buffers(inputs, specs, pins=not cold)
        for name, buffer in shape.here.items():
            view(buffer)[...] = inputs[name]
        tuned = vars(self.tuned).setdefault("shapes", set())
        if not self.settled:
            tuned.add(key)
        torch.backends.cudnn.benchmark = key in tuned  # it tries all algorithms at a shape's first run in a thread
        if key not in self.shapes and not cold:
            self._warm(shape)
            self.shapes[key] = shape
        shape.fill()
        self.begun.record()
        if shape.graph:
            shape.graph.replay()
        else:
            shape.outputs = self.call(shape.inputs)
        self.ended.record()
        for name, tensor in shape.outputs.items():
            if name not in shape.answers or shape.answers[name].shape != tensor.shape:  # which may depend on what came
                shape.answers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=shape.pins)
            shape.answers[name].copy_(tensor, non_blocking=True)
        self.copied.record()
        self.copied.synchronize()
        return shape.answers

    def _warm(self, shape: _Shape) -> None:
        """Run a shape until nothing of it is new, then record what a run does, to be replayed as one launch.

        As "CUDA Graphs" in PyTorch's notes on CUDA semantics describes it. A module that does what cannot be recorded (waits for
        the GPU, say) runs without.
        """
        for _ in range(RUNS):
            shape.fill()  # each time: a module may write into what it gets
            self.call(shape.inputs)
        if not self.captures:
            return
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                outputs = self.call(shape.inputs)
        except Exception as error:
            self.failed = graph  # its part of the pool of pinned memory refers to it, and stays (torch 2.13)
            with suppress(RuntimeError):  # where it got as far as ending this itself
                torch._C._cuda_endAllocateToPool(0, self.pool)  # noqa: SLF001 - else memory that is kept is never given back
            if out_of_memory(error, self.gpu):
                raise
            # Whatever a module raises that cannot be recorded, it has just run well.
            self.captures = False
            _log.warning("%s: runs without CUDA graphs: %s", self.where, " ".join(str(error).split())[:200])
            torch.cuda.synchronize()
            return
        shape.graph, shape.outputs = graph, outputs


def _buffers(inputs: Tensors, specs: tuple[TensorSpec, ...], *, pins: bool) -> _Shape:
    here = {spec.name: torch.empty(inputs[spec.name].shape, dtype=DTYPES[spec.datatype], pin_memory=pins) for spec in specs}
    there = {name: torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda") for name, buffer in here.items()}
    return _Shape(pins, here, there)
