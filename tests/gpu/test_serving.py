"""A real GPU under a real server: answers, graphs, memory, ends. Run by `make test-gpu`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from server.engines import onnx_cuda
from server.gpus import find, visible
from tests.models import identity, put
from tests.repeat import Repeat
from tests.server import Server
from tests.torch_models import NETWORK, TENSORS, answer, put_torch

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MIB, GIB = 1 << 20, 1 << 30
PATIENCE = 240.0
ROWS = [[1.0, 2.0, 3.0], [-0.5, 0.25, 4.0], [0.0, 0.0, 1.0]]
KILLED = (r"worker \d+ \(active\): (killed by SIGKILL|ended)", r"Worker \(pid:\d+\) (was sent SIGKILL|exited with code)")
SIZES = (1, 2, 4, 8)

CONVOLUTIONS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3) / 9, persistent=False)

    def forward(self, x):
        image = self.layer(x)[:, :1, None, None].expand(len(x), 1, 16, 16)
        mean = torch.nn.functional.conv2d(image, self.kernel).mean((1, 2, 3))
        return self.layer(x) + 0 * mean[:, None]

def module():
    return Net()
"""
"""`NETWORK` with a convolution, so that cuBLAS and cuDNN are both in its graphs."""

GREEDY = NETWORK.replace(
    "return self.layer(x)", "return self.layer(x) + 0 * torch.zeros(len(x), 1 << 28, device=x.device)[:, :2]"
)
"""`NETWORK`, taking a gibibyte a row."""


def gpu_server(models: Path, **settings: Any) -> Server:
    """A server on the first GPU, that may take its time: a driver does."""
    return Server(models, ready=False, **{"device": "cuda:0", "workers": 2, **settings})


def ready(server: Server) -> Server:
    """Wait for it."""
    server.wait_ready(PATIENCE)
    server.wait_state("active", int(server.settings["WARMFORK_WORKERS"]))
    return server


def used() -> int:
    """Bytes of the first GPU that anybody holds."""
    return visible(find(), os.environ)[0].used


def ask(server: Server, model: str = "net", rows: int = 1) -> int:
    """One inference, whose answer must be right if there is one: its status."""
    given = [ROWS[row % 3] for row in range(rows)]
    status, body = server.infer(model, {"x": ("FP32", given)})
    if status == 200:
        assert pytest.approx(answer(given).ravel().tolist(), rel=0.02, abs=0.02) == body["outputs"][0]["data"]
    return status


def test_serves(tmp_path: Path) -> None:
    """Two workers on one GPU answer rightly in every shape, warm, from graphs; master and management never open it."""
    put_torch(tmp_path, "net", "model.safetensors", python=CONVOLUTIONS)
    before = used()
    with gpu_server(tmp_path) as server:
        ready(server)
        assert [200] * 40 == [ask(server, rows=1 + number % 8) for number in range(40)]
        workers = server.status()["workers"]
        for worker in workers:
            assert "cuda:0" == worker["device"]
            assert 50 * MIB < worker["gpu_bytes"] < 8 * GIB
            for shape in worker["models"]["net/1"].values():
                assert 0 < shape["steady_ms"] < shape["first_ms"]
        assert 0 == sum(worker["cold_dispatches"] for worker in workers)
        assert "without CUDA graphs" not in server.log
        for title in ("warmfork: master", "warmfork: management"):
            opened = [str(entry.readlink()) for entry in Path(f"/proc/{server.pid_of(title)}/fd").iterdir()]
            assert not [target for target in opened if target.startswith("/dev/nvidia")]
    assert used() < before + 64 * MIB, "something is left on the GPU"


@pytest.mark.parametrize("file", ["model.pt", "model.pt2", "model.pth"])
def test_every_form(file: str, tmp_path: Path) -> None:
    """Each of torch's forms runs there."""
    put_torch(tmp_path, "net", file)
    with gpu_server(tmp_path, workers=1) as server:
        ready(server)
        assert [200] * 8 == [ask(server, rows=rows) for rows in range(1, 9)]
        assert "cuda" == server.status()["models"][0]["device"]
        assert "without CUDA graphs" not in server.log


def test_onnx(tmp_path: Path) -> None:
    """onnxruntime's CUDA provider, where the one that is installed has it; else the model stays on the processor."""
    put(tmp_path, "same", identity())
    with gpu_server(tmp_path, device="auto", workers=1) as server:
        ready(server)
        status, body = server.infer("same", {"x": ("FP32", ROWS)})
        assert (200, [number for row in ROWS for number in row]) == (status, body["outputs"][0]["data"])
        assert ("cpu" if onnx_cuda.no_cuda() else "cuda") == server.status()["models"][0]["device"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(precision: str, tmp_path: Path) -> None:
    """A model in half precision says how far it is from float32."""
    toml = f'batch_sizes = {list(SIZES)}\nrtol = 0.02\natol = 0.02\n{TENSORS}\n[torch]\nprecision = "{precision}"\n'
    put_torch(tmp_path, "net", "model.safetensors", toml, CONVOLUTIONS)
    with gpu_server(tmp_path, workers=1) as server:
        ready(server)
        assert [200] * 8 == [ask(server, rows=rows) for rows in range(1, 9)]
        (model,) = server.status()["models"]
        assert (precision, True) == (model["precision"], model["batched"])
        assert 0 < model["difference"] < 0.02


def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled model is found on disk by every worker and by the next start, and is recorded like others."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    toml = f"batch_sizes = [1, 4]\n{TENSORS}\n[torch]\ncompile = true\n"
    put_torch(tmp_path / "models", "net", "model.safetensors", toml)
    seconds = []
    for _ in range(2):
        with gpu_server(tmp_path / "models") as server:
            ready(server)
            assert [200] * 20 == [ask(server, rows=1 + number % 4) for number in range(20)]
            assert "without CUDA graphs" not in server.log
            seconds.append(server.status()["models"][0]["compile_seconds"])
    assert seconds[1] < seconds[0]


def test_kills_and_reloads_under_load(tmp_path: Path) -> None:
    """A killed worker loses its running requests alone; a reload loses none."""
    folder = put_torch(tmp_path, "net", "model.safetensors", python=CONVOLUTIONS)
    with gpu_server(tmp_path) as server:
        ready(server)
        with Repeat(lambda: ask(server, rows=3), threads=4) as asking:
            (folder / "model.py").touch()
            server.reload()
        assert {200} == {result for _, result, _ in asking.results}
        server.expect(*KILLED)
        victim = server.wait_state("active", 2)[0]["pid"]
        with Repeat(lambda: ask(server, rows=3), threads=4) as asking:
            os.kill(victim, SIGKILL)
            server.wait_log("takes traffic", PATIENCE, count=5)
        failed = [result for _, result, _ in asking.results if result != 200]
        assert len(failed) <= 4
        assert all(isinstance(result, OSError) or "Remote" in type(result).__name__ for result in failed)


def test_out_of_memory_in_warmup(tmp_path: Path) -> None:
    """A model too big for its share by one shape ends the start, which names the shape; nothing is left on the GPU."""
    put_torch(tmp_path, "net", "model.safetensors", f"batch_sizes = [1, 16]\n{TENSORS}", GREEDY)
    before = used()
    line = r"model net/1, shape batch=16: CUDA out of memory\. Tried to allocate .*; \d+ MiB of \d+ MiB on cuda:0 are a worker's$"
    gpu_server(tmp_path, workers=1, memory_headroom=0.95).ends(70, line, "trying the next way")
    assert used() < before + 64 * MIB, "something is left on the GPU"


def test_out_of_memory_on_a_request(tmp_path: Path) -> None:
    """A request for whose shape there is no memory is refused with 503, and its worker serves on."""
    put_torch(tmp_path, "net", "model.safetensors", TENSORS, GREEDY)
    with gpu_server(tmp_path, workers=1, memory_headroom=0.95) as server:
        ready(server)
        before = server.wait_state("active")[0]["pid"]
        for _ in range(3):
            assert ask(server, rows=16) == 503
            assert ask(server) == 200
        assert before == server.wait_state("active")[0]["pid"]


def test_plan(tmp_path: Path) -> None:
    """More workers than fit are refused before any is forked, by what a worker was found to take."""
    put_torch(tmp_path, "net", "model.safetensors", f"batch_sizes = [1]\n{TENSORS}", GREEDY)
    with gpu_server(tmp_path, workers=1) as server:
        each = ready(server).status()["workers"][0]["gpu_bytes"]
    (gpu, *_) = visible(find(), os.environ)
    count = int(0.8 * gpu.total / each) + 1
    refused = gpu_server(tmp_path, workers=min(count, 512), memory_headroom=0.2)
    refused.ends(75, r"no memory for \d+ workers: a worker takes \d+ MiB of its GPU, \d+ MiB are left of \d+ MiB on cuda:0.*")
    assert not re.search("Booting worker", refused.log)
