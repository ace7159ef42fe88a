"""Workers on GPUs: where each goes, how much memory each may take, what is refused. The GPUs are fake ones, all else is real."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTTIN
from typing import Any

import pytest

from server.gpus import VISIBLE
from tests.fake_gpu.libcuda import LibCuda
from tests.fake_gpu.machine import CONTEXT, Device, Machine
from tests.models import identity, put
from tests.repeat import Repeat
from tests.server import ROOT, Server
from tests.torch_models import NETWORK, TENSORS, answer, put_torch

KIB, MIB = 1 << 10, 1 << 20
PLAIN = {"x": ("FP32", [[1.0, 2.0, 3.0]])}
KILLED = (r"worker \d+ \(active\): (killed by SIGKILL|ended)", r"Worker \(pid:\d+\) (was sent SIGKILL|exited with code)")

HEAVY = NETWORK.replace(
    "self.layer = torch.nn.Linear(3, 2)",
    "self.layer = torch.nn.Linear(3, 2)\n        self.register_buffer('pad', torch.zeros({count}), persistent=False)",
)

SAYS = """
import os

def say():
    with open({seen!r}, "a") as file:
        print(os.getpid(), os.environ.get({setting!r}), file=file)

def preprocess(inputs):
    say()
    return inputs
"""
"""A model's Python that says which process has it, and what that one sees."""


def heavy(size: int) -> str:
    """`NETWORK` with so many bytes more of weights."""
    return HEAVY.format(count=size // 4)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of two GPUs, which every server sees that is started now."""
    made = Machine.make(tmp_path / "machine", Device("GPU-a"), Device("GPU-b"))
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(VISIBLE, raising=False)
    return made


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository of one torch model."""
    put_torch(tmp_path / "models", "net", "model.safetensors")
    return tmp_path / "models"


def devices(server: Server, count: int = 1) -> dict[int, str]:
    """The device of each worker that takes traffic, by its pid, once there are so many at least."""
    return {worker["pid"]: worker["device"] for worker in server.wait_state("active", count)}


def ask(server: Server, model: str = "net") -> int:
    """One inference, whose answer must be right: its status."""
    status, body = server.infer(model, PLAIN)
    if status == 200:
        assert pytest.approx(answer([[1, 2, 3]]).ravel().tolist(), rel=1e-5) == body["outputs"][0]["data"]
    return status


def on_gpus(models: Path, **settings: Any) -> Server:
    """A server on the GPUs that there are."""
    return Server(models, **{"device": "auto", **settings})


def no_driver(machine: Machine) -> None:
    """Take the driver away."""
    machine.folder.rename(machine.folder.with_name("gone"))


def test_placement(machine: Machine, models: Path) -> None:
    """Three workers on two GPUs; whoever replaces one gets its GPU, a generation that comes is spread too; never the master."""
    spread = Counter({"cuda:0": 2, "cuda:1": 1})
    with on_gpus(models, workers=3) as server, Repeat(lambda: ask(server)) as asking:
        assert spread == Counter(devices(server, 3).values())
        titles = server.processes().values()
        assert {f"warmfork: worker {slot} · active · gen 1 · cuda:{slot % 2}" for slot in range(3)} <= set(titles)
        for worker in server.status()["workers"]:
            assert CONTEXT < worker["gpu_bytes"] < 2 * CONTEXT
            assert all(shape["steady_ms"] < shape["first_ms"] for shape in worker["models"]["net/1"].values())
        server.expect(*KILLED)
        for pid, device in devices(server, 3).items():
            others = devices(server).keys() - {pid}
            os.kill(pid, SIGKILL)
            server.wait(partial(_replaced, server, others, pid), "a replacement")
            (new,) = devices(server).keys() - others
            assert device == devices(server)[new]
        (models / "net" / "1" / "model.py").touch()
        server.reload()
        assert [1, 2] == sorted(Counter(devices(server, 3).values()).values())
        cuda, held = machine.seen, {**machine.held("GPU-a"), **machine.held("GPU-b")}
        assert devices(server).keys() <= cuda
        assert not cuda & {server.process.pid, server.pid_of("warmfork: management")}
        assert devices(server).keys() == held.keys()
    lost = [result for _, result, _ in asking.results if result != 200]
    assert len(lost) <= 3  # the request in each killed worker
    assert all(isinstance(each, OSError) for each in lost)


def _replaced(server: Server, others: set[int], pid: int) -> bool:
    """Whether all of `others` take traffic, and one more, which is not `pid`."""
    return pid not in devices(server) and len(devices(server).keys() - others) == 1


def test_hand_over(machine: Machine, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new master finds its GPUs by itself, beside the old one's workers: those that the operator lets it see."""
    machine.have(Device("GPU-a"), Device("GPU-b"), Device("GPU-c"))
    monkeypatch.setenv(VISIBLE, "2,1")
    with on_gpus(models, workers=2) as server, Repeat(lambda: ask(server)) as asking:
        server.hand_over()
        assert {"cuda:0", "cuda:1"} == set(devices(server, 2).values())
        assert server.process.pid not in machine.seen
        held = {uuid: list(machine.held(uuid)) for uuid in ("GPU-c", "GPU-b", "GPU-a")}
        assert {"cuda:0": held["GPU-c"], "cuda:1": held["GPU-b"]} == {device: [pid] for pid, device in devices(server).items()}
        assert not held["GPU-a"]
    assert {200} == {result for _, result, _ in asking.results}


def test_who_sees_a_gpu(machine: Machine, models: Path, tmp_path: Path) -> None:
    """A worker sees its own. Where nothing runs on one nobody sees any: torch would begin CUDA wherever it compiles."""
    seen = tmp_path / "seen"
    python = NETWORK.replace("return Net()", "say(); return Net()") + SAYS.format(seen=str(seen), setting=VISIBLE)
    put_torch(models, "says", "model.safetensors", TENSORS + TENSORS.replace("[[", "[[model."), python=python)
    for device, wanted in (("cuda:1", "GPU-b"), ("cpu", "")):
        seen.unlink(missing_ok=True)
        with on_gpus(models, device=device) as server:
            assert ask(server, "says") == 200
            found = {int(pid): uuid for pid, _, uuid in (line.partition(" ") for line in seen.read_text().splitlines())}
            assert [wanted] == [found[pid] for pid in devices(server)]
            assert {"None" if wanted else ""} == {found[server.process.pid]}
            assert {uuid for pid, uuid in found.items()} == {"None" if wanted else "", wanted}
    assert not machine.held("GPU-a")


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_other_workers(kind: str, machine: Machine, models: Path) -> None:
    """gunicorn's own worker classes serve from GPUs as well."""
    with Server(models, "-k", kind, "--threads", "3", workers=1, device="cuda:1") as server:
        assert ["cuda:1"] == list(devices(server).values())
        assert ask(server) == 200
        assert devices(server).keys() == machine.held("GPU-b").keys()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "seen", "used"),
    [("auto", "1", "cuda:0"), ("cuda:1", None, "cuda:1"), ("auto", "", "cpu")],
)
def test_which(device: str, seen: str | None, used: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting and CUDA's own are honoured; `auto` uses the processor where nothing else is left."""
    if seen is not None:
        monkeypatch.setenv(VISIBLE, seen)
    with on_gpus(models, device=device) as server:
        assert [used] == list(devices(server).values())
        assert [used.partition(":")[0]] == [model["device"] for model in server.status()["models"]]
        assert ask(server) == 200


def test_no_driver(machine: Machine, models: Path) -> None:
    """Without a driver `auto` uses the processor, and `cuda` ends the start in one line."""
    no_driver(machine)
    with on_gpus(models) as server:
        assert ["cpu"] == list(devices(server).values())
    on_gpus(models, device="cuda", ready=False).ends(75, r"WARMFORK_DEVICE=cuda: no such GPU; there are 0$")


@pytest.mark.usefixtures("machine")
def test_a_model_on_the_processor(models: Path) -> None:
    """A model may stay on the processor beside others; an engine that knows no GPU does so under `auto`, and is refused else."""
    put_torch(models, "slow", "model.pt", f'device = "cpu"\nbatch_sizes = [1, 2]\n{TENSORS}')
    with on_gpus(models) as server:
        assert {"net": "cuda", "slow": "cpu"} == {model["name"]: model["device"] for model in server.status()["models"]}
        assert [200, 200] == [ask(server), ask(server, "slow")]
        assert ["cuda:0"] == list(devices(server).values())
    put(models, "onnx", identity())
    with on_gpus(models) as server:
        server.wait_log(
            r"\[WARNING\] model onnx/1: runs on the processor: onnxruntime .* is a build without CUDAExecutionProvider"
        )
        assert server.infer("onnx", PLAIN)[0] == 200
    line = r'model onnx/1: WARMFORK_DEVICE=cuda: onnxruntime .*; or say device = "cpu" in its model\.toml$'
    on_gpus(models, device="cuda", ready=False).ends(78, line)


def test_half_precision(machine: Machine, tmp_path: Path) -> None:
    """What half precision differs by is in /status; a GPU that has none of it runs in float32, and the log says so."""
    toml = f'batch_sizes = [1, 2]\n{TENSORS}\n[torch]\nprecision = "bf16"\n'
    put_torch(tmp_path / "models", "net", "model.safetensors", toml)
    with on_gpus(tmp_path / "models") as server:
        (model,) = server.status()["models"]
        assert ("cuda", "bf16") == (model["device"], model["precision"])
        assert 1e-4 < model["difference"] < 0.1
    machine.have(Device("GPU-a", capability=(7, 5)))
    with on_gpus(tmp_path / "models") as server:
        assert "fp32" == server.status()["models"][0]["precision"]
        server.wait_log(r"model net/1: runs in fp32, since Fake GPU-a has no bf16")


@pytest.mark.usefixtures("machine")
def test_graphs(models: Path) -> None:
    """A module that waits for its GPU is found out in the trial, which says so; no worker tries to record it again."""
    waits = NETWORK.replace("return self.layer(x)", "return self.layer(x) if x.sum().item() < 1e9 else x")
    put_torch(models, "waits", "model.safetensors", python=waits)
    with on_gpus(models, workers=2) as server:
        assert {"net": True, "waits": False} == {model["name"]: model["graphs"] for model in server.status()["models"]}
        assert [200, 200] == [ask(server), ask(server, "waits")]
    (said,) = re.findall(r"\[WARNING\] (.*) runs without CUDA graphs: operation not permitted", server.log)
    assert said.endswith("model.safetensors:")


def test_plan(machine: Machine, models: Path) -> None:
    """Workers who together leave less than the headroom are refused before any is forked; by default there are fewer."""
    machine.have(Device("GPU-a", 60 * MIB, used=8 * MIB))
    (models / "net" / "1" / "model.py").write_text(heavy(20 * MIB), encoding="utf-8")
    refused = on_gpus(models, workers=2, ready=False)
    line = (
        r"no memory for 2 workers: a worker takes 21 MiB of its GPU, 18 MiB are left of 60 MiB on cuda:0 .* after 1 of them, .*"
    )
    refused.ends(75, line)
    assert "Booting worker" not in refused.log

    server = on_gpus(models, ready=False, standby=0)
    del server.settings["WARMFORK_WORKERS"]
    server.settings["WARMFORK_MAX_WORKERS"] = "3"
    with server:
        server.wait_ready()
        server.wait_log(r"Starting 1 workers and not 2: a worker takes 21 MiB of its GPU")
        server.send(SIGTTIN)
        server.wait_log(
            r"\[WARNING\] TTIN refused: no memory for one more worker: a worker takes 21 MiB of its GPU, 18 MiB are left"
        )
        machine.have(Device("GPU-a", 60 * MIB))
        server.send(SIGTTIN)
        server.wait(lambda: server.status()["targets"]["active"] == 2, "one more")
        server.send(SIGTTIN)  # while that one boots, and holds nothing yet
        server.wait_log(r"TTIN refused: no memory for one more worker", count=2)
        assert devices(server, 2).keys() == machine.held("GPU-a").keys()


def test_models_together(machine: Machine, models: Path) -> None:
    """The plan is for all models of a worker at once, however they are shared, and is made anew when one of them goes."""
    machine.have(Device("GPU-a", 70 * MIB))
    lonely = "import threading\n" + heavy(9 * MIB).replace("return Net()", "threading.Timer(99, print).start(); return Net()")
    for name in ("one", "two"):
        put_torch(models, name, "model.safetensors", python=lonely)
    with on_gpus(models, workers=2) as server:
        assert ["live", "mapped", "mapped"] == [model["rung"] for model in server.status()["models"]]
        server.send(SIGTTIN)
        server.wait_log("TTIN refused: no memory for one more worker: a worker takes 19 MiB of its GPU, 17 MiB are left")
        shutil.rmtree(models / "two")
        server.reload()
        server.send(SIGTTIN)
        assert 3 == len(devices(server, 3))
        shutil.rmtree(models / "one")
        server.reload()
        assert {1} == {worker["gpu_bytes"] // MIB for worker in server.wait_state("active", 3)}


def test_one_by_one(machine: Machine, models: Path) -> None:
    """Where two generations do not fit on the GPUs, one worker at a time takes over, where one has left; if none fits, none."""
    machine.have(Device("GPU-a", 60 * MIB), Device("GPU-b", 60 * MIB))  # of which two workers may have 48 on each
    python = models / "net" / "1" / "model.py"
    python.write_text(heavy(16 * MIB), encoding="utf-8")
    with on_gpus(models, workers=3) as server, Repeat(lambda: ask(server)) as asking:
        assert Counter({"cuda:0": 2, "cuda:1": 1}) == Counter(devices(server, 3).values())
        python.touch()
        server.reload()
        server.wait_log(
            "No memory for 3 workers beside those that serve, so one at a time takes over: a worker takes 17 MiB of its GPU"
        )
        assert [1, 2] == sorted(Counter(devices(server, 3).values()).values())
        assert "out of memory" not in server.log

        python.touch()
        # The trial finds room for one worker on each, the plan does not.
        machine.have(*(Device(uuid, 60 * MIB, used=42 * MIB - sum(machine.held(uuid).values())) for uuid in ("GPU-a", "GPU-b")))
        server.reload("no memory for a worker beside those that serve: a worker takes 17 MiB of its GPU")
    assert {200} == {result for _, result, _ in asking.results}


@pytest.mark.usefixtures("machine")
def test_the_warm_pool(models: Path) -> None:
    """Who takes traffic is spread over the GPUs, when a generation opens and when a standby takes a place."""
    both = {"cuda:0", "cuda:1"}
    with on_gpus(models, workers=2, standby=2) as server:
        server.expect(*KILLED)
        for _ in range(3):
            server.wait_state("standby", 2)
            before = devices(server, 2)
            assert both == set(before.values())
            victim = min(before)
            os.kill(victim, SIGKILL)
            server.wait(partial(_replaced, server, before.keys() - {victim}, victim), "a standby")


def test_out_of_memory_in_warmup(machine: Machine, tmp_path: Path) -> None:
    """A model that is too big for its share by one shape ends the start, the shape is named."""
    machine.have(Device("GPU-a", 8 * MIB))
    put_torch(tmp_path / "models", "net", "model.safetensors", f"batch_sizes = [1, 8, 400000]\n{TENSORS}")
    line = (
        r"model net/1, shape batch=400000: CUDA out of memory\. Tried to allocate 4800000 bytes; "
        r"3 MiB of 8 MiB on cuda:0 are a worker's$"
    )
    on_gpus(tmp_path / "models", workers=2, ready=False).ends(70, line, "trying the next way")
    assert len(machine.seen) > 0


def test_out_of_memory_on_a_request(machine: Machine, tmp_path: Path) -> None:
    """A request for whose shape there is no memory is refused with 503, and its worker serves on."""
    machine.have(Device("GPU-a", 4 * MIB))
    put_torch(tmp_path / "models", "net", "model.safetensors", TENSORS)
    with on_gpus(tmp_path / "models") as server:
        before = devices(server)
        for _ in range(2):
            status, body = server.infer("net", {"x": ("FP32", [[1.0, 2.0, 3.0]] * 300_000)})
            assert (503, "model 'net' ran out of memory for this request") == (status, body["error"])
            assert ask(server) == 200
        assert before == devices(server)


def test_a_lost_gpu(machine: Machine, models: Path) -> None:
    """A worker whose GPU is lost to it answers all that it has accepted, ends, and is replaced; the other one serves on."""
    with on_gpus(models, workers=2) as server:
        before = {device: pid for pid, device in devices(server, 2).items()}
        server.expect("failed on a request", "Traceback", "the GPU is lost to this process: CUDA error", "illegal memory")
        server.expect(r"worker \d+ failed at model net/1", "exited with code 70", "the next try waits")  # while it is still lost
        machine.lose("GPU-b")
        with Repeat(lambda: ask(server)) as asking:
            server.wait(lambda: before["cuda:1"] not in devices(server), "its end")
            server.wait_log("the next try waits 1 s")
        assert {before["cuda:0"]} == devices(server).keys()
        assert {200, 500} == {result for _, result, _ in asking.results}

        server.expect(*KILLED)
        os.kill(before["cuda:0"], SIGKILL)  # whoever comes in its place does not wait for the other GPU
        server.wait(
            lambda: "cuda:0" in set(devices(server).values()) and before["cuda:0"] not in devices(server), "a replacement"
        )
        (slot,) = (worker["slot"] for worker in server.wait_state("active") if worker["device"] == "cuda:0")
        assert (
            f'warmfork_worker_failed_boots{{slot="{slot}"}} 0.0' in server.request("GET", "/metrics", management=True)[2].decode()
        )
        machine.lose("GPU-b", lost=False)
        assert {"cuda:0", "cuda:1"} == set(devices(server, 2).values())


def test_nobody_initialises_cuda_in_the_master(
    machine: Machine, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hook and no trial does, through a start, a reload, a replacement; who does is found out in a child, and named."""
    library = LibCuda(tmp_path / "driver")
    for name, value in library.environ.items():
        monkeypatch.setenv(name, value)
    folder = put_torch(
        models, "guilty", "model.safetensors", python=NETWORK.replace("return Net()", "torch.cuda.init(); return Net()")
    )
    with on_gpus(models, workers=2) as server:
        guilty, innocent = server.status()["models"]
        assert [("mapped", "cuda"), ("live", "cuda")] == [(model["rung"], model["device"]) for model in (guilty, innocent)]
        assert re.search(r"live: model guilty/1: loading left CUDA, which is initialised in .*libcuda\.so\.1", guilty["why"])
        server.expect(*KILLED)
        os.kill(next(iter(devices(server))), SIGKILL)
        server.wait_log("takes traffic", count=3)
        (folder / "model.py").touch()
        (models / "net" / "1" / "model.py").touch()
        server.reload()
        assert devices(server).keys() <= library.initialised
        assert server.process.pid not in library.initialised | machine.seen
        server.send(SIGHUP)
        server.wait_log("Generation 3 is open")


@pytest.mark.usefixtures("machine")
def test_a_hook_that_initialises_cuda(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there a hook that does, no worker would be forked, and it would be said why."""
    library = LibCuda(tmp_path / "driver")
    for name, value in library.environ.items():
        monkeypatch.setenv(name, value)
    server = Server(models, "-c", str(ROOT / "tests" / "guilty_conf.py"), device="auto", ready=False)
    line = r"no worker can be forked: the master has CUDA, which is initialised in .*libcuda\.so\.1"
    server.expect(line, "Shutting down: Master$")
    server.start()
    master = server.process.pid
    server.clean(70)
    assert re.search(line, server.log)
    assert master in library.initialised
