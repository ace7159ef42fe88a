"""`kill -9` of every process in every phase: nobody is left behind, nobody else is harmed, what was lost comes back."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.phases import OPEN, PHASES, SHAPES, Scene, server_in
from tests.repeat import Repeat
from tests.server import Server

KILLED = (r"Worker \(pid:\d+\) was sent SIGKILL", r"worker \d \(\w+\): killed by SIGKILL")


@pytest.mark.parametrize("phase", PHASES)
def test_master(phase: str, tmp_path: Path) -> None:
    """The end of the master is the end of all, in every phase: no orphan, and both ports are free within two seconds."""
    with server_in(phase, tmp_path) as scene:
        server = scene.server
        ports = server.port, server.management_port
        server.processes()
        os.kill(server.process.pid, signal.SIGKILL)
        server.wait(lambda: not server.left() and all(map(_free, ports)), "nobody left and free ports", 2)

        assert all(held.exception(10) for held in scene.held)
        server.clean(-signal.SIGKILL)


@pytest.mark.parametrize("phase", PHASES)
def test_management(phase: str, tmp_path: Path) -> None:
    """The management process comes back, on its port, in every phase; inference does not notice."""
    with server_in(phase, tmp_path) as scene, Repeat(lambda: phase not in OPEN or scene.ask(), pause=0.01) as asking:
        server = scene.server
        before = server.pid_of("management")
        os.kill(before, signal.SIGKILL)
        server.wait(lambda: server.probe("/livez")[0] == 200, "the management process again")

        assert server.pid_of("management") != before
        assert server.status()["phase"]
        if phase == "draining":
            assert server.probe("/readyz")[0] == 503
        else:
            scene.gated.open_all()
            server.wait_ready()
            assert scene.ask() == 200
        server.wait_log("The management process ended; a new one was started")
    assert {result for _, result, _ in asking.results} <= {True, 200}
    assert all(held.result()[0] == 200 for held in scene.held)


def test_trial(tmp_path: Path) -> None:
    """A trial that is killed ends the start with status 75, and the line says what it was at."""
    with server_in("trial", tmp_path) as scene:
        scene.server.expect(r"trial: the child was killed by SIGKILL at model gated/1: importing its Python")
        os.kill(scene.gated.came("trial")[0], signal.SIGKILL)
        scene.server.clean(75)
    assert len(re.findall("killed by SIGKILL", scene.server.log)) == 1


@pytest.mark.parametrize("phase", ["warming", "waiting"])
def test_worker_in_first_boot(phase: str, tmp_path: Path) -> None:
    """A worker that is killed in its first boot is replaced after a pause, and the generation opens as a whole."""
    with server_in(phase, tmp_path) as scene:
        server = scene.server
        server.expect(*KILLED)
        with Repeat(lambda: " ".join(worker["doing"] for worker in server.status()["workers"]), pause=0.05) as doing:
            os.kill(scene.worker(), signal.SIGKILL)
            server.wait_log(r"killed by SIGKILL.*; try 2 of 3")
            assert server.probe("/readyz")[0] == 503
            server.wait(lambda: any("since boots failed" in str(said) for _, said, _ in doing.results), "the back-off")
        scene.gated.open_all()
        server.wait_ready()

        assert len(server.wait_state("active", 2)) == 2
        assert scene.ask() == 200


def test_workers_in_first_boot_again_and_again(tmp_path: Path) -> None:
    """When workers of the first boot are killed again and again, memory is missing: the server gives up with status 75."""
    with server_in("warming", tmp_path, workers=1) as scene:
        server = scene.server
        server.expect(*KILLED, "Shutting down: Master", "Reason:")
        for number in range(1, 4):
            server.wait(lambda number=number: len(scene.gated.came("warming")) == number, f"boot {number}")  # type: ignore[misc]
            os.kill(scene.gated.came("warming")[-1], signal.SIGKILL)
        server.clean(75)


def test_worker_in_a_request(tmp_path: Path) -> None:
    """Only what is in a killed worker fails; the rest is answered, no total falls, and a warmed worker takes the slot."""
    with server_in("request", tmp_path) as scene:
        server, gated = scene.server, scene.gated
        server.expect(*KILLED)
        for _ in range(10):
            assert scene.ask() == 200
        victim, before, total = scene.worker(), server.status(), _total(server)
        lost = gated.came("request").count(victim)
        slot = next(worker["slot"] for worker in before["workers"] if worker["pid"] == victim)
        assert total == 10

        with Repeat(lambda: _total(server)) as totals:
            os.kill(victim, signal.SIGKILL)
            server.wait(lambda: sum(held.done() for held in scene.held) == lost, "those in the killed worker to fail")
            assert all(isinstance(held.exception(), OSError) for held in scene.held if held.done())
            assert [scene.ask() for _ in range(10)] == [200] * 10
            gated.open("request")
            server.wait(lambda: victim not in {worker["pid"] for worker in server.wait_state("active", 2)}, "the replacement")
            workers = server.wait_state("active", 2)
        assert sum(held.exception(10) is None and held.result()[0] == 200 for held in scene.held) == len(scene.held) - lost

        new = next(worker for worker in workers if worker["slot"] == slot)
        assert new["pid"] != victim
        assert set(new["models"]["gated/1"]) == set(SHAPES)
        assert new["requests"] >= next(worker["requests"] for worker in before["workers"] if worker["slot"] == slot)
        seen = [result for _, result, _ in totals.results]
        assert seen == sorted(seen)
        assert _total(server) == 20 + len(scene.held) - lost
        assert sum(worker["cold_dispatches"] for worker in server.status()["workers"]) == 0


@pytest.mark.parametrize("phase", ["serving", "draining"])
def test_worker_while_idle(phase: str, tmp_path: Path) -> None:
    """A worker that is killed while nothing is in it costs no request, in a drain as well, and is replaced."""
    with server_in(phase, tmp_path) as scene:
        server = scene.server
        server.expect(*KILLED)
        victim = scene.worker()
        os.kill(victim, signal.SIGKILL)
        server.wait_log("was sent SIGKILL")
        assert [scene.ask() for _ in range(10)] == [200] * 10
        server.wait(lambda: victim not in server.processes() and len(_pids(scene)) == 2, "the replacement")

        assert server.probe("/readyz")[0] == (503 if phase == "draining" else 200)


def _pids(scene: Scene) -> list[int]:
    return [worker["pid"] for worker in scene.server.status()["workers"] if worker["state"] == "active"]


def _total(server: Server) -> float:
    _, _, text = server.request("GET", "/metrics", management=True)
    found = re.search(rb"^warmfork_requests_total (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
