"""What is too short for windows, or has none: how soon somebody serves, how often somebody is forked, what is left at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from bench import repository
from bench.client import Connection, infer
from bench.report import Figure, Report, Say
from tests.models import dense, identity, put
from tests.server import Server
from workloads import children

ROUNDS = 5
SOON_MS = 50.0
JOIN = 2.0
"""The most that a worker without a warm pool may take to be ready, in forks with one inference per shape."""
WIDTH, LAYERS = 4096, 8
"""Square matrix products of a model of 512 MiB."""
FORKS, FORKS_SECONDS = 10, 30.0
BUSY_SECONDS = 0.5
CLIENTS = 10
KILLED = ("was sent SIGKILL", "killed by SIGKILL")

_BARE = """
import os, sys, time
os.environ.update(OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    child = os.fork()
    if not child:
        session.run(None, {"x": numpy.ones((1, %d), numpy.float32)})
        os._exit(0)
    os.waitpid(child, 0)
    print(time.perf_counter() - start)
"""
"""What a fork and one inference take without any server: a process that holds the model, and children of it."""
_PYTHON = """
import os, time
from pathlib import PosixPath
from setproctitle import getproctitle

def preprocess(inputs):
    if inputs["x"][0, 0] == 13:
        time.sleep({busy})
    if {broken!r}.exists() and getproctitle().startswith("warmfork: worker"):
        os.abort()
    return inputs
"""


def run(folder: Path, say: Say) -> Report:
    """Measure them all, one after another."""
    say("a standby takes the place of one more, and of one that was killed")
    promoted, restored = _promotions(repository.small(folder))
    say("one more without a standby, 512 MiB")
    joined, bare = _joins(folder / "large")
    say("a replacement that crashes each time")
    forks = _forks(folder / "crashing")
    say("TERM under load")
    lost, status, answered = _stop(folder / "busy")
    return Report(
        [
            Figure("TTIN to the first answer of a standby", median(promoted), "ms", bound=SOON_MS),
            Figure("kill -9 to the first answer of a standby", median(restored), "ms", bound=SOON_MS),
            Figure(
                "TTIN to ready, no standby, 512 MiB ÷ fork and one run",
                median(joined) / median(bare),
                "×",
                bound=JOIN,
            ),
            Figure("TTIN to ready, no standby, 512 MiB", median(joined), "ms", control=median(bare)),
            Figure(f"forks in {FORKS_SECONDS:g} s, each of which crashes", forks, bound=FORKS),
            Figure("requests without an answer where one could connect, TERM under load", lost, bound=0),
            Figure("exit status after it", status, bound=0),
            Figure("requests that were answered in it", answered, least=1),
        ],
        "a bare fork with one inference",
        {"promoted": promoted, "restored": restored, "joined": joined, "bare": bare},
    )


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Have a worker stand still, so that whoever answers is another."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _answer_ms(server: Server, request: bytes, act: Callable[[], None]) -> float:
    """Milliseconds from `act` to the answer of a request on a connection of its own."""
    start = time.perf_counter()
    act()
    with Connection(server.port) as connection:
        connection.exchange(request)
    return (time.perf_counter() - start) * 1e3


def _promotions(models: Path) -> tuple[list[float], list[float]]:
    request = infer("dense", repository.row(1))
    promoted, restored = [], []
    with children.server(models, workers=2, standby=1, max_workers=3) as server:
        server.expect(*KILLED)
        for _ in range(ROUNDS):
            server.wait_state("standby")
            first, second = (worker["pid"] for worker in server.wait_state("active", 2))
            with _stopped(first), _stopped(second):
                promoted.append(_answer_ms(server, request, lambda: server.send(signal.SIGTTIN)))
            server.wait_state("standby")
            server.send(signal.SIGTTOU)
            server.wait(lambda: len(server.status()["workers"]) == 3, "the third to leave")  # noqa: PLR2004 - two and one
            first, second = (worker["pid"] for worker in server.wait_state("active", 2))
            with _stopped(first):
                restored.append(_answer_ms(server, request, lambda pid=second: os.kill(pid, signal.SIGKILL)))  # type: ignore[misc]
            server.wait_state("active", 2)
    return promoted, restored


def _joins(models: Path) -> tuple[list[float], list[float]]:
    folder = put(models, "m", dense(WIDTH, LAYERS), "batch_sizes = [1]\n")
    command = [sys.executable, "-c", _BARE % WIDTH, str(folder / "1" / "model.onnx"), str(ROUNDS)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603 - our own program
    joined = []
    with children.server(models, max_workers=2) as server:
        for turn in range(ROUNDS):
            start = time.perf_counter()
            os.kill(server.process.pid, signal.SIGTTIN)
            server.wait_log("takes traffic", count=turn + 2)  # no look at /status, which would take a processor meanwhile
            joined.append((time.perf_counter() - start) * 1e3)
            server.send(signal.SIGTTOU)
            server.wait(lambda: len(server.status()["workers"]) == 1, "the second to leave")
    return joined, [float(line) * 1e3 for line in lines]


def _forks(models: Path) -> int:
    broken = models / "broken"
    put(models, "m", identity(), "batch_sizes = [1]\n", _PYTHON.format(busy=0, broken=broken))
    with children.server(models, workers=2) as server:
        server.expect(*KILLED, "SIGABRT", "Worker .* was sent")
        broken.touch()
        before, begun = server.log.count("Booting worker"), time.monotonic()
        os.kill(server.wait_state("active", 2)[0]["pid"], signal.SIGKILL)
        server.wait(lambda: time.monotonic() > begun + FORKS_SECONDS, "the time to pass")
        forks = server.log.count("Booting worker") - before
        broken.unlink()
    return forks


def _stop(models: Path) -> tuple[int, int, int]:
    """Requests that were lost, the exit status, requests that were answered."""
    put(models, "m", identity(), "batch_sizes = [1, 2]\n", _PYTHON.format(busy=BUSY_SECONDS, broken=models / "never"))
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def ask(server: Server, *, long: bool) -> None:
        request = infer("m", {"x": np.full((1, 3), 13 if long else 1, np.float32)})
        while True:
            try:
                with Connection(server.port) as connection:
                    outcome = "answered"
                    connection.exchange(request)
            except ConnectionRefusedError:
                return
            except (OSError, ConnectionError) as error:
                outcome = "answered" if "503" in str(error) else "lost"
            with lock:
                outcomes[outcome] += 1

    with children.server(models, workers=2) as server, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, server, long=place < CLIENTS // 2) for place in range(CLIENTS)]
        server.wait(lambda: outcomes["answered"] > CLIENTS, "answers")
        server.stop()
        for client in clients:
            client.result()
    return outcomes["lost"], server.process.returncode or 0, outcomes["answered"]
