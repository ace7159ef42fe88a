"""What is too short for windows, or has none: how soon somebody serves, how often somebody is forked, what is left at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench import repository, rivals
from bench.client import Connection, infer
from bench.report import Figure, Report, Say
from tests.models import dense, identity, put
from workloads import children
from workloads.stages import PLAIN
from workloads.stopping import stop
from workloads.watch import Plain, until

ROUNDS = 5
SOON_MS = 50.0
JOIN = 2.0
"""The most that a worker without a warm pool may take to be ready, in forks with one inference per shape."""
WIDTH, LAYERS = 4096, 8
"""Square matrix products of a model of 512 MiB."""
FORKS, FORKS_SECONDS = 10, 30.0
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
import os
from pathlib import PosixPath
from setproctitle import getproctitle

def preprocess(inputs):
    if {broken!r}.exists() and getproctitle().startswith("warmfork: worker"):
        os.abort()
    return inputs
"""


def run(folder: Path, say: Say) -> Report:
    """Measure them all, one after another."""
    say("a standby takes the place of one more, and of one that was killed")
    small = repository.small(folder)
    promoted, restored = _promotions(small)
    plain_joined, plain_restored = _plain(small)
    say("one more without a standby, 512 MiB")
    joined, bare = _joins(folder / "large")
    say("a replacement that crashes each time")
    forks = _forks(folder / "crashing")
    say("TERM under load")
    stopped = stop(folder / "busy")
    return Report(
        [
            Figure("TTIN to the first answer of a standby", median(promoted), "ms", SOON_MS, median(plain_joined)),
            Figure("kill -9 to the first answer of a standby", median(restored), "ms", SOON_MS, median(plain_restored)),
            Figure(
                "TTIN to ready, no standby, 512 MiB ÷ fork and one run",
                median(joined) / median(bare),
                "×",
                bound=JOIN,
            ),
            Figure("TTIN to ready, no standby, 512 MiB", median(joined), "ms", control=median(bare)),
            Figure(f"forks in {FORKS_SECONDS:g} s, each of which crashes", forks, bound=FORKS, least=1),
            *stopped,
        ],
        "of a standby a plain gunicorn's new worker, of 512 MiB a bare fork with one inference",
        {
            "promoted": promoted,
            "restored": restored,
            "plain gunicorn, joined": plain_joined,
            "plain gunicorn, restored": plain_restored,
            "joined": joined,
            "bare": bare,
        },
    )


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Have a worker stand still, so that whoever answers is another."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _answer_ms(port: int, request: bytes, act: Callable[[], None]) -> float:
    """Milliseconds from `act` to the answer of a request on a connection of its own."""
    start = time.perf_counter()
    act()
    with Connection(port) as connection:
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
                promoted.append(_answer_ms(server.port, request, lambda: server.send(signal.SIGTTIN)))
            server.wait_state("standby")
            server.send(signal.SIGTTOU)
            server.wait(lambda: len(server.status()["workers"]) == 3, "the third to leave")  # noqa: PLR2004 - two and one
            first, second = (worker["pid"] for worker in server.wait_state("active", 2))
            with _stopped(first):
                restored.append(_answer_ms(server.port, request, lambda pid=second: os.kill(pid, signal.SIGKILL)))  # type: ignore[misc]
            server.wait_state("active", 2)
    return promoted, restored


def _plain(models: Path) -> tuple[list[float], list[float]]:
    """The same of a plain gunicorn, which has to fork in both cases."""
    request = infer("dense", repository.row(1))
    joined, restored = [], []
    with rivals.serve("plain_app", models / "dense" / "1" / "model.onnx", f"{PLAIN} -w 2", request) as rival:
        master = Plain(rival.master)

        def both() -> list[int]:
            until(lambda: len(master.workers()) == 2, "two workers")  # noqa: PLR2004 - as many as were asked for
            return sorted(master.workers())

        for _ in range(ROUNDS):
            first, second = both()
            with _stopped(first), _stopped(second):
                joined.append(_answer_ms(rival.port, request, master.more))
            master.fewer()
            first, second = both()
            with _stopped(first):
                restored.append(_answer_ms(rival.port, request, lambda pid=second: os.kill(pid, signal.SIGKILL)))  # type: ignore[misc]
    return joined, restored


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
    put(models, "m", identity(), "batch_sizes = [1]\n", _PYTHON.format(broken=broken))
    with children.server(models, workers=2) as server:
        server.expect(*KILLED, "SIGABRT", "Worker .* was sent")
        broken.touch()
        before, begun = server.log.count("Booting worker"), time.monotonic()
        os.kill(server.wait_state("active", 2)[0]["pid"], signal.SIGKILL)
        server.wait(lambda: time.monotonic() > begun + FORKS_SECONDS, "the time to pass")
        forks = server.log.count("Booting worker") - before
        broken.unlink()
    return forks
