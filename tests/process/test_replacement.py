"""Replacements that crash, processes that stand still: back-off and no fork storm, and no healthy worker is killed."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.models import identity, put
from tests.phases import HELD, PLAIN, SHAPES, server_in
from tests.repeat import Repeat
from tests.server import Server

WATCHED = 5.0
"""Seconds during which boots are counted: 0, 1 and 3 seconds after the first are all that 1, 2, 4 … allow."""
CRASHES = {
    "raises": ("raise RuntimeError('no luck')", r"model gated/1, shape batch=1: raised RuntimeError: no luck"),
    "exits": ("os._exit(3)", r"worker \d \(warming\): ended with status 3 at model gated/1, shape batch=1"),
    "dies": ("os.kill(os.getpid(), signal.SIGKILL)", r"worker \d \(warming\): killed by SIGKILL at model gated/1, shape batch=1"),
}


@pytest.mark.parametrize("how", CRASHES)
def test_every_replacement_crashes(how: str, tmp_path: Path) -> None:
    """Each try waits longer than the last, `/status` says why, the other worker serves on, and it ends with its cause."""
    code, line = CRASHES[how]
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask, pause=0.02) as asking:
        server, gated = scene.server, scene.gated
        server.expect("was sent SIGKILL", r"killed by SIGKILL", r"Worker \(pid:\d+\) exited with code", line)
        gated.close("warming", code)
        os.kill(scene.worker(), signal.SIGKILL)
        began = time.monotonic()
        server.wait_log(line + r".*; the next try waits 1 s")
        server.wait_log(r"; the next try waits 4 s")
        assert any(re.search(line, reason) for reason in server.status()["reasons"])
        assert server.probe("/readyz")[0] == 200
        server.wait(lambda: time.monotonic() > began + WATCHED, "the time to pass")

        assert len(gated.came("warming")) == 3
        gated.open("warming")
        workers = server.wait_state("active", 2)
        assert all(set(worker["models"]["gated/1"]) == set(SHAPES) for worker in workers)
        server.wait(lambda: server.status()["reasons"] == [], "the reasons to go")
    assert [result for _, result, _ in asking.results if result != 200][1:] == []  # at most the one in the killed worker


def test_crashes_as_soon_as_it_is_open(tmp_path: Path) -> None:
    """Clients that send again and again what kills a worker cause no storm of forks: the next one waits each time."""
    with server_in("serving", tmp_path, workers=1) as scene:
        server = scene.server
        server.expect("was sent SIGABRT", "killed by SIGABRT")
        scene.gated.close("request", "os.abort()")
        with Repeat(lambda: server.infer("gated", HELD)[0], pause=0.02):
            server.wait_log(r"worker 0 \(active\): killed by SIGABRT.*; the next try waits 1 s")
            server.wait_log(r"worker 0 \(active\): killed by SIGABRT.*; the next try waits 4 s")
            scene.gated.open("request")
            server.wait_state("active")
        assert scene.ask() == 200


def test_back_off_starts_anew(tmp_path: Path) -> None:
    """After a replacement that came up, the next failure waits as long as a first one."""
    with server_in("serving", tmp_path) as scene:
        server = scene.server
        server.expect("was sent SIGKILL", "killed by SIGKILL", "raised RuntimeError", "exited with code")
        for count in (1, 2):
            scene.gated.close("warming", "raise RuntimeError('no luck')")
            os.kill(server.status()["workers"][0]["pid"], signal.SIGKILL)
            server.wait_log("; the next try waits 1 s", count=count)
            scene.gated.open("warming")
            server.wait_state("active", 2)
            server.wait(lambda: server.status()["reasons"] == [], "the reasons to go")


def _umask(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text(encoding="utf-8").partition("Umask:\t")[2].split()[0]


def test_without_descriptors(tmp_path: Path) -> None:
    """A master that can open nothing cannot replace a worker, reload or hand over, says so, and serves on; later it can."""
    put(tmp_path, "m", identity())
    with Server(tmp_path, workers=2) as server:
        server.expect(
            "SIGKILL", "no worker can be forked: .*Too many open files", "USR2 was refused", "reload failed", "was refused"
        )
        killed, other = (worker["pid"] for worker in server.wait_state("active", 2))
        master = psutil.Process(server.process.pid)
        soft, hard = master.rlimit(resource.RLIMIT_NOFILE)
        mask = _umask(master.pid)
        master.rlimit(resource.RLIMIT_NOFILE, (4, hard))
        os.kill(killed, signal.SIGKILL)
        server.wait_log("no worker can be forked", count=2)
        assert "no worker can be forked" in " ".join(server.status()["reasons"])
        server.send(signal.SIGUSR2)
        server.wait_log("USR2 was refused: no new master can be started: .*Too many open files")
        server.send(signal.SIGHUP)
        server.wait_log("generation 2 was refused: .*Too many open files")
        assert server.infer("m", PLAIN)[0] == 200
        assert mask == _umask(master.pid) != "0000"

        master.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert other in [worker["pid"] for worker in server.wait_state("active", 2)]
        server.wait(lambda: "no worker can be forked" not in " ".join(server.status()["reasons"]), "the reason to go")
        server.reload()
        server.hand_over()


@pytest.mark.parametrize("who", ["worker", "master"])
def test_stopped_for_a_while(who: str, tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT cost nobody his life: not the process that stood still, not those that waited for it."""
    with server_in("serving", tmp_path) as scene:
        server = scene.server
        before = sorted(server.processes())
        pid = scene.worker() if who == "worker" else server.process.pid
        os.kill(pid, signal.SIGSTOP)
        server.wait(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the stop")
        stopped = time.monotonic()
        held = [scene.pool.submit(scene.ask) for _ in range(8)]
        server.wait(lambda: time.monotonic() > stopped + 3, "the time to pass")
        assert server.probe("/livez")[0] == 200
        assert server.probe("/readyz")[0] == 200
        os.kill(pid, signal.SIGCONT)

        assert [each.result() for each in held] == [200] * 8
        assert [scene.ask() for _ in range(10)] == [200] * 10
        assert sorted(server.processes()) == before
