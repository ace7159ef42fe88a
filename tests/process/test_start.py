"""What a start and a master must bear: odd exit handlers, few descriptors, signals and options of gunicorn's own."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

import psutil
import pytest

from tests.models import identity, put
from tests.phases import Gated
from tests.server import ROOT, Server

QUICK = 10.0
"""Seconds within which an end is quick."""
PLAIN = {"x": ("FP32", [[1.0, 2.0, 3.0]])}
_TOLD = """
import os
import runpy
import signal
from pathlib import Path

globals().update(runpy.run_path({conf!r}))
ours, told = post_worker_init, Path({told!r})


def post_worker_init(worker):
    if not told.exists():
        told.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGTERM)
    ours(worker)
"""
"""A configuration whose first worker is told to end just before it warms."""


@pytest.mark.parametrize("place", ["load", "warming"])
def test_exit_handler_that_hangs(place: str, tmp_path: Path) -> None:
    """TERM during the load, or the boot, of a model whose atexit handler never ends: status 0 at once, nobody left."""
    gated = Gated(tmp_path)
    handler = "import atexit\natexit.register(time.sleep, 3600)\n"
    gated.close("load", handler + ("pause(gate)" if place == "load" else ""))
    if place != "load":
        gated.close(place)
    with Server(tmp_path, ready=False) as server:
        server.wait(lambda: gated.came(place), place)
        sent = time.monotonic()
        server.stop()
        assert time.monotonic() - sent < QUICK


def test_management_without_descriptors(tmp_path: Path) -> None:
    """A management process that cannot be started anew, as the master has no descriptor left, is tried again; all serve on."""
    put(tmp_path, "m", identity())
    with Server(tmp_path) as server:
        server.expect("management process .*cannot be started")
        workers = server.wait_state("active")
        master = psutil.Process(server.process.pid)
        soft, hard = master.rlimit(resource.RLIMIT_NOFILE)
        master.rlimit(resource.RLIMIT_NOFILE, (4, hard))
        os.kill(server.pid_of("management"), SIGKILL)
        server.wait_log(r"management process .*cannot be started.*trying again", count=2)
        assert server.infer("m", PLAIN)[0] == 200
        assert server.process.poll() is None

        master.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.wait_ready()
        assert server.wait_state("active")[0]["pid"] == workers[0]["pid"]
        server.wait_log("The management process ended; a new one was started")


@contextmanager
def _descriptors(most: int) -> Iterator[None]:
    """What is started inside may have so many descriptors open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_slots_with_few_descriptors(tmp_path: Path) -> None:
    """Places for 512 workers take no descriptors of the master's before there are workers."""
    put(tmp_path, "m", identity())
    with _descriptors(900), Server(tmp_path, workers=2, max_workers=512) as server:
        server.wait_ready()
        assert psutil.Process(server.process.pid).num_fds() < 64
        assert server.infer("m", PLAIN)[0] == 200


def test_max_requests(tmp_path: Path) -> None:
    """With gunicorn's `--max-requests 50` a worker is replaced after 50 requests of clients, none of ours; all are answered."""
    put(tmp_path, "m", identity())
    with Server(tmp_path, "--max-requests", "50") as server:
        assert [server.infer("m", PLAIN)[0] for _ in range(49)] == [200] * 49
        assert "Autorestarting" not in server.log
        (old,) = server.wait_state("active")
        assert server.infer("m", PLAIN)[0] == 200
        server.wait(lambda: server.wait_state("active")[0]["pid"] != old["pid"], "another in its place")
        assert server.infer("m", PLAIN)[0] == 200
        assert len(re.findall("Booting worker", server.log)) == 2


def test_told_to_end_between_load_and_warmup(tmp_path: Path) -> None:
    """A worker that is told to end where only gunicorn's handler hears it ends by that signal: no failed start, another comes."""
    put(tmp_path / "models", "m", identity())
    conf = tmp_path / "conf.py"
    conf.write_text(_TOLD.format(conf=str(ROOT / "gunicorn.conf.py"), told=str(tmp_path / "told")), encoding="utf-8")
    with Server(tmp_path / "models", "-c", str(conf)) as server:
        server.expect("sent SIGTERM|killed by SIGTERM")
        (worker,) = server.wait_state("active")
        assert worker["pid"] != int((tmp_path / "told").read_text(encoding="ascii"))
        assert server.infer("m", PLAIN)[0] == 200
