"""torch with a GPU that is memory of the processor: what `server/engines/torch_cuda.py` calls, and what of it can go wrong."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fake_gpu.machine import CONTEXT, Machine


class Process:
    """CUDA in one process: one GPU, what is allocated there, how much may be."""

    def __init__(self) -> None:
        """Nothing is initialised."""
        self.pid = 0
        self.uuid = ""
        self.machine = Machine(Path())
        self.allocated = 0
        self.most = 0

    def start(self) -> None:
        """Initialise it, as any call does; raises where a parent has done so before its fork."""
        if self.pid == os.getpid():
            if self.machine.lost(self.uuid):
                message = "CUDA error: an illegal memory access was encountered"
                raise RuntimeError(message)
            return
        if self.pid:
            message = "Cannot re-initialize CUDA in forked subprocess"
            raise RuntimeError(message)
        self.pid, self.machine, self.uuid = os.getpid(), Machine.here(), os.environ["CUDA_VISIBLE_DEVICES"]
        self.total = next(device.total for device in self.machine.devices if self.uuid in (device.uuid, *device.mig))
        self.most = self.total
        self.change(0)

    def change(self, count: int) -> None:
        """So many bytes more, or less; raises past the bound or where none are left, as the caching allocator of torch does."""
        if count > 0 and (self.allocated + count > self.most or self.machine.used(self.uuid) + count > self.total):
            message = f"CUDA out of memory. Tried to allocate {count} bytes. The rest is long"
            raise torch.cuda.OutOfMemoryError(message)
        self.allocated += count
        self.machine.hold(self.uuid, CONTEXT + self.allocated)


_process = Process()


def empty(shape: Any, *, dtype: torch.dtype, device: str = "cpu", pin_memory: bool = False) -> torch.Tensor:
    """`torch.empty`; pinned memory is any."""
    if pin_memory:
        _process.start()
    return _counted(torch.empty(shape, dtype=dtype), device)


def empty_like(like: torch.Tensor, *, device: str) -> torch.Tensor:
    """`torch.empty_like`."""
    return _counted(torch.empty_like(like), device)


def _counted(made: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor that takes memory of the GPU as long as it lives, if it is to lie there."""
    if device == "cuda":
        _process.start()
        _process.change(made.nbytes)
        weakref.finalize(made.untyped_storage(), _process.change, -made.nbytes)
    return made


class Graph:
    """Records what is done while it is captured, and does it again, into the same memory."""

    def __init__(self) -> None:
        """Empty."""
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Do it again."""
        _process.start()
        for function, args, kwargs, before in self.calls:
            for old, new in zip(tree_leaves(before), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


_WAITING = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)  # noqa: SLF001 - torch's own name
"""What would have to wait for the GPU, and so can't be captured."""


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING:
            message = "operation not permitted when stream is capturing"
            raise RuntimeError(message)
        result = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, result))
        return result


@contextmanager
def capture(graph: Graph, **_rest: object) -> Iterator[None]:
    """`torch.cuda.graph`."""
    with _Record(graph):
        yield


class Event:
    """A moment."""

    def __init__(self, **_rest: object) -> None:
        """None yet."""
        self.at = 0.0

    def record(self) -> None:
        """Now."""
        _process.start()
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds until another."""
        return (other.at - self.at) * 1e3

    def synchronize(self) -> None:
        """It has happened."""
        _process.start()


@contextmanager
def stream(_stream: object) -> Iterator[None]:
    """`torch.cuda.stream`."""
    yield


def limit(fraction: float) -> None:
    """`torch.cuda.set_per_process_memory_fraction`."""
    _process.start()
    _process.most = int(fraction * _process.total)


def memory(_device: int) -> tuple[int, int]:
    """`torch.cuda.mem_get_info`."""
    _process.start()
    return _process.total - _process.machine.used(_process.uuid), _process.total


def synchronize() -> None:
    """`torch.cuda.synchronize`."""
    _process.start()


class Torch:
    """What is not a GPU's is the real one's."""

    version = SimpleNamespace(cuda="0.0")
    empty = staticmethod(empty)
    empty_like = staticmethod(empty_like)
    device = staticmethod(lambda *_: torch.device("cpu"))
    _C = SimpleNamespace(_cuda_endAllocateToPool=lambda *_: None, _host_emptyCache=lambda: None)
    cuda = SimpleNamespace(
        CUDAGraph=Graph,
        Event=Event,
        OutOfMemoryError=torch.cuda.OutOfMemoryError,
        Stream=object,
        graph=capture,
        graph_pool_handle=object,
        mem_get_info=memory,
        memory_reserved=lambda: _process.allocated,
        set_per_process_memory_fraction=limit,
        stream=stream,
        synchronize=synchronize,
    )

    def __init__(self) -> None:
        """What dispatch needs is imported with the engine, once for all processes."""
        with _Record(Graph()):
            torch.zeros(1)

    def __getattr__(self, name: str) -> Any:
        """The real one's."""
        return getattr(torch, name)
