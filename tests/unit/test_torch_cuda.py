"""A torch module on a GPU: weights, a graph per shape, memory, what is cold. On a fake one, and on a real one where it is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.engines import torch_cuda, torch_faults, torch_weights
from server.engines.engine import Precision, Source
from server.engines.torch_cuda import RUNS
from server.engines.torch_session import TorchSession
from server.engines.torch_weights import STAGING
from server.exits import GpuFullError, GpuLostError, GpuMemoryError, ModelError, ResourceError
from server.gpus import VISIBLE, Allotment, Gpu
from server.tensors import ANY, DTYPES, Array, TensorSpec
from tests.fake_gpu import cuda
from tests.fake_gpu.machine import CONTEXT, Device, Machine
from tests.unit.extremes import values

torch.set_num_threads(1)  # the process that runs the tests forks in others of them

MIB = 1 << 20
TOTAL = 256 * MIB


@pytest.fixture(autouse=True, params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine | None]:
    """A machine of one GPU, on which torch runs what we give it; None where it is the real one."""
    if request.param == "real":
        yield None
        gc.collect()  # sessions are in a circle with what they call
        torch.cuda.empty_cache()
        return
    made = Machine.make(tmp_path / "machine", Device("GPU-a", TOTAL))
    for name, value in {**made.environ, VISIBLE: "GPU-a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cuda, "_process", cuda.Process())
    for module in (torch_cuda, torch_faults, torch_weights):
        monkeypatch.setattr(module, "torch", cuda.Torch())
    yield made


fake = pytest.mark.parametrize("machine", ["fake"], indirect=True)
"""For tests that look into the GPU, or break it."""


class Calls(torch.nn.Module):
    """A module that calls a function, and counts; it has a weight of `size` floats."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], Any], size: int = 3) -> None:
        """Call `function` with what comes and the weight."""
        super().__init__()
        self.function = function
        self.calls = 0
        self.weight = torch.nn.Parameter(torch.arange(size, dtype=torch.float32), requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        """Call it."""
        self.calls += 1
        return self.function(x, self.weight)


def tensor(name: str, datatype: str = "FP32") -> TensorSpec:
    """A tensor of three columns."""
    return TensorSpec(name, datatype, (ANY, 3), ("n", None))


def on_gpu(module: torch.nn.Module, datatype: str = "FP32", share: int = TOTAL, **told: Any) -> TorchSession:
    """A session that has entered its GPU."""
    made = TorchSession(module, Source(Path("m/1/model.pt"), **told), (tensor("x", datatype),), (tensor("y", datatype),), 1)
    made.enter(1, Allotment(Gpu("GPU-a", "Fake", TOTAL, 0, (9, 0)), share))
    return made


def run(session: TorchSession, given: Array) -> Array:
    """What it answers."""
    return session.run({"x": given})["y"]


def rows(count: int, start: int = 0) -> Array:
    """So many rows, all different."""
    made: Array = np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)
    return made


def graph_of(session: TorchSession, count: int) -> Any:
    """The graph of a shape; None where it has none."""
    assert session.cuda is not None
    shape = session.cuda.shapes.get(((count, 3),))
    return shape.graph if shape else None


def test_a_graph_for_each_shape() -> None:
    """A shape's first run warms and records it; then it is replayed, on what comes, and the module's Python runs no more."""
    module = Calls(lambda x, weight: x * weight)
    session = on_gpu(module)

    for number in range(3):
        for count in (1, 4):
            given = rows(count, 10 * number)
            assert (given * np.arange(3) == run(session, given)).all()
    assert 2 * (RUNS + 1) == module.calls
    assert graph_of(session, 1) is not graph_of(session, 4)
    assert session.overlaps
    assert session.graphs
    assert session.device_ms > 0


def test_answers_are_the_callers() -> None:
    """What was answered is not changed by the next run, though both use the same buffers."""
    session = on_gpu(Calls(lambda x, _: x * 1))
    first = run(session, rows(2))
    run(session, rows(2, 50))
    assert (rows(2) == first).all()
    first[:] = 7  # and it can be written to


def test_writes_into_its_input() -> None:
    """A module that writes into what it gets answers rightly from its first run on, and the client's array stays as it was."""
    session = on_gpu(Calls(lambda x, _: x.add_(1)))
    for number in range(3):
        given = rows(2, number)
        assert (rows(2, number) + 1 == run(session, given)).all()
        assert (rows(2, number) == given).all()


def test_what_cannot_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """A module that waits for the GPU in between runs without graphs, which is said once."""
    session = on_gpu(Calls(lambda x, _: x * x.sum().item()))
    for count in (1, 2, 1):
        assert (rows(count) * rows(count).sum() == run(session, rows(count))).all()
    assert graph_of(session, 1) is None
    assert not session.graphs
    (said,) = caplog.messages
    assert said.startswith("m/1/model.pt: runs without CUDA graphs: ")


def test_not_to_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Where it is said, or known, that there are to be no graphs, none is tried: the module runs each time."""
    module = Calls(lambda x, weight: x * weight)
    session = on_gpu(module, graphs=False)
    for number in (1, 2):
        assert (rows(2) * np.arange(3) == run(session, rows(2))).all()
        assert RUNS + number == module.calls
    assert not session.graphs
    assert not caplog.messages


def test_as_long_as_it_likes() -> None:
    """Without a graph an output may have another shape each time."""
    session = on_gpu(Calls(lambda x, _: x[: int(x[0, 0].item())]))
    for count in (1, 3, 2):
        given = rows(4, count)
        assert (given[:count] == run(session, given)).all()


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BYTES"}))
def test_every_datatype(datatype: str) -> None:
    """Each datatype goes there and back unchanged, however its array lies in memory."""
    session = on_gpu(Calls(lambda x, _: x.clone()), datatype)
    given = values(datatype)
    for lying in (given, np.asfortranarray(given), np.frombuffer(given.tobytes(), given.dtype).reshape(given.shape)):
        assert given.tobytes() == run(session, lying).tobytes()


def test_half_precision() -> None:
    """Weights are made half before they are copied; inputs and outputs are as declared, and made half on the GPU."""
    seen: list[torch.dtype] = []

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.extend([x.dtype, weight.dtype])
        return x * weight

    session = on_gpu(Calls(multiply), precision=Precision.FP16)
    answer = run(session, rows(2))
    assert {torch.float16} == set(seen)
    assert np.float32 == answer.dtype
    assert (rows(2) * np.arange(3) == answer).all()


@fake
def test_weights(machine: Machine) -> None:
    """Weights of more than the buffer that they go through arrive whole, tied ones once; what was inherited is let go."""
    size = STAGING // 2 + 5  # floats: three buffers, the last nearly empty
    module = Calls(lambda x, weight: x * weight[-1], size)
    module.again = module.weight
    before = module.weight.data_ptr()
    session = on_gpu(module)

    assert (rows(1) * (size - 1) == run(session, rows(1))).all()
    assert torch.equal(module.weight, torch.arange(size, dtype=torch.float32))
    assert module.again is module.weight
    assert before != module.weight.data_ptr()
    (held,) = machine.held("GPU-a").values()
    assert 0 <= held - CONTEXT - 4 * size < MIB


def test_no_room_for_the_weights() -> None:
    """A model too big for its share says so with the bound."""
    line = r"^m/1/model\.pt: its weights: CUDA out of memory\. Tried to .*; 64 MiB of 256 MiB on cuda:0 are a worker's$"
    with pytest.raises(ModelError, match=line):
        on_gpu(Calls(lambda x, _: x * 1, 32 * MIB), share=64 * MIB)


def test_no_room_for_a_shape() -> None:
    """A shape too big for the share raises with the bound, and the next one that fits runs."""
    session = on_gpu(Calls(lambda x, _: x * 1), share=64 * MIB)
    big = np.zeros((8 * MIB, 3), np.float32)
    for _ in range(2):
        with pytest.raises(GpuMemoryError, match=r"^CUDA out of memory\. .*; 64 MiB of 256 MiB on cuda:0 are a worker's$"):
            run(session, big)
        assert (rows(2) == run(session, rows(2))).all()


@fake
def test_others_hold_it(machine: Machine) -> None:
    """Where the share would do, and the GPU is full of what others hold, it is they who are said to be in the way."""
    session = on_gpu(Calls(lambda x, _: x * 1), share=64 * MIB)
    machine.have(Device("GPU-a", TOTAL, TOTAL - 32 * MIB))
    with pytest.raises(GpuFullError, match=r"Tried to .* 64 MiB of 256 MiB on cuda:0 are a worker's, of which others hold"):
        run(session, np.zeros((4 * MIB, 3), np.float32))
    with pytest.raises(ResourceError, match=r"its weights: .*, of which others hold what is missing$"):
        on_gpu(Calls(lambda x, _: x * 1, 12 * MIB), share=64 * MIB)


@fake
def test_cold(machine: Machine) -> None:
    """Once it serves, a shape that is not warm runs once, is not recorded, and holds no memory afterwards."""
    module = Calls(lambda x, weight: x * weight)
    session = on_gpu(module)
    run(session, rows(1))
    session.settle()
    before, calls = machine.held("GPU-a"), module.calls

    for _ in range(2):
        assert (rows(5) * np.arange(3) == run(session, rows(5))).all()
    assert calls + 2 == module.calls
    assert before == machine.held("GPU-a")
    assert not torch.backends.cudnn.benchmark
    run(session, rows(1))
    assert torch.backends.cudnn.benchmark


@fake
def test_lost(machine: Machine) -> None:
    """An error after which no later call can succeed is told from others, whichever it was in."""
    session = on_gpu(Calls(lambda x, _: x * 1))
    run(session, rows(1))
    machine.lose("GPU-a")
    for _ in range(2):
        with pytest.raises(GpuLostError, match=r"^the GPU is lost to this process: CUDA error: an illegal memory access"):
            run(session, rows(1))


def test_out_of_memory_in_other_words() -> None:
    """Libraries say in words of their own that memory ran out, also as the reason of something else."""

    def product(_x: torch.Tensor, _weight: torch.Tensor) -> torch.Tensor:
        message = "the layer failed"
        raise RuntimeError(message) from RuntimeError(
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        )

    with pytest.raises(GpuFullError, match=r"ALLOC_FAILED .*; 256 MiB of 256 MiB on cuda:0 are a worker's, of which others hold"):
        run(on_gpu(Calls(product)), rows(1))


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("CUDA error: out of memory\nSearch for it\nCUDA kernel errors might", "CUDA error: out of memory"),
        (
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_A",
        ),
    ],
)
@fake
def test_who_has_the_memory(said: str, short: str) -> None:
    """CUDA and its libraries know no share: where they find no memory, the GPU is full. It is said in one line."""
    found = torch_faults.out_of_memory(RuntimeError(said), Allotment(Gpu("GPU-a", "Fake", TOTAL, 0, (9, 0)), TOTAL))
    assert isinstance(found, GpuFullError)
    assert str(found).startswith(short)
    assert "\n" not in str(found)


@fake
def test_layout() -> None:
    """Weights are laid out on the GPU as they were; those with gaps are made dense, and all have their values."""
    module = Calls(lambda x, weight: x * weight)
    odd = {
        "images": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gaps": torch.rand(4, 6)[:, ::2],
        "views": torch.rand(3, 1).expand(3, 5),
        "nothing": torch.empty(0, 3),
        "number": torch.tensor(7),
        "bits": torch.tensor([True, False]),
    }
    for name, tensor in odd.items():
        module.register_buffer(name, tensor.detach())
    on_gpu(module)
    for name, tensor in odd.items():
        there = module.get_buffer(name)
        assert there.cpu().equal(tensor)
        assert there.data_ptr() != tensor.data_ptr() or not tensor.numel()
    assert module.get_buffer("images").stride() == odd["images"].stride()


def test_constants_at_any_depth() -> None:
    """What an exported graph holds beside its weights, in itself or in a part of it, goes to the GPU as well."""

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.arange(6.0).reshape(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.table[1]

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()
            self.top = torch.ones(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            whole: torch.Tensor = self.part(x) + self.top
            return whole

    module: Any = torch.export.export(Whole(), (torch.rand(2, 3),)).module()
    held = {name: part.data_ptr() for name, part in (("part", module.part.table), ("top", module.top))}
    session = on_gpu(module)
    assert (rows(2) * [3, 4, 5] + 1 == run(session, rows(2))).all()
    assert held["part"] != module.part.table.data_ptr()
    assert held["top"] != module.top.data_ptr()


def test_another_thread() -> None:
    """Where a shape is run by a thread that did not warm it, nothing is tried out: cuDNN remembers by thread.

    Also not where it looks like the one that did, and has ended: they may have one number.
    """
    session = on_gpu(Calls(lambda x, weight: x * weight))
    seen = []

    def look() -> None:
        run(session, rows(1))
        seen.append(torch.backends.cudnn.benchmark)

    def another() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    look()
    another()
    session.settle()
    another()
    look()
    assert [True, True, False, True] == seen


def test_tied_in_memory() -> None:
    """Tensors of one memory, as an exported program has tied weights, are one on the GPU as well."""
    module = Calls(lambda x, weight: x * weight)
    module.register_buffer("again", module.weight.detach())
    run(on_gpu(module), rows(1))
    assert module.weight.data_ptr() == module.get_buffer("again").data_ptr()


def test_what_a_module_raises() -> None:
    """An error that is no fault of the GPU passes, and the next run is as before."""

    def picky(x: torch.Tensor, _weight: torch.Tensor) -> torch.Tensor:
        if len(x) == 2:
            message = "two"
            raise RuntimeError(message)
        return x

    session = on_gpu(Calls(picky))
    session.settle()
    with pytest.raises(RuntimeError, match=r"^two$"):
        run(session, rows(2))
    assert (rows(1) == run(session, rows(1))).all()
