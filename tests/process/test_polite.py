"""Warming beside live traffic: behind those that serve, one worker at a time, and nothing of that stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN
from typing import Any

import pytest

from tests.models import identity, put
from tests.phases import Gated, Scene, server_in
from tests.repeat import Repeat
from tests.server import Server

BOOT_TIMEOUT = 3
LATE = 12
"""Seconds that a boot may take which comes to its end in half of them, also beside other tests."""
MANY = 7
"""Workers; each holds up the next for a fifth of the time to boot, so that the last waits for longer than that."""
SLOW = """
slept = FOLDER / f"slept-{os.getpid()}"
if not slept.exists():
    slept.touch()
    time.sleep(0.7)
"""
LAST = 300.0
"""Seconds to wait for a server that comes after everything else on the machine, other tests among it."""
BEHIND = pytest.mark.timeout(2 * LAST)
PROJECT = Path(__file__).parents[2] / "gunicorn.conf.py"
NOTING = """
import os, runpy, sys, threading, time
globals().update(runpy.run_path({project!r}))

def note(event, given):
    if event == "import" and given[0] == "onnxruntime":
        with open({noted!r}, "a", encoding="ascii") as file:
            print(os.getpid(), os.sched_getscheduler(0), file=file)
        while threading.current_thread() is not threading.main_thread() and os.path.exists({noted!r} + "-gate"):
            time.sleep(0.005)

sys.addaudithook(note)
"""
BOUND = """
import os, threading
first = {}
def preprocess(inputs):
    if first.setdefault(os.getpid(), threading.get_ident()) != threading.get_ident():
        raise RuntimeError("not this thread")
    return inputs
"""


def _policies(pid: int) -> list[int]:
    """How the threads of a process are scheduled, its first one first."""
    tasks = sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())
    return [os.sched_getscheduler(task) for task in tasks]


def _share(pid: int) -> str:
    """What the kernel says of the session of a process; empty where sessions have no share of the processors."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text(encoding="ascii").rpartition("nice ")[2].strip()
    except FileNotFoundError:
        return ""


def _noting(noted: Path) -> str:
    """A configuration under which each import of onnxruntime is noted, and waits, if not in the main thread, at a gate."""
    configuration = noted.with_name("conf.py")
    configuration.write_text(NOTING.format(project=str(PROJECT), noted=str(noted)), encoding="utf-8")
    return str(configuration)


def _imports(noted: Path, pid: int) -> list[int]:
    """How the threads were scheduled in which a process has imported it."""
    lines = noted.read_text(encoding="ascii").splitlines() if noted.exists() else []
    return [int(policy) for process, policy in map(str.split, lines) if int(process) == pid]


def _waiting(scene: Scene) -> list[dict[str, Any]]:
    """Workers whose turn is still to come."""
    return [worker for worker in scene.server.status()["workers"] if "waiting for its turn" in worker["doing"]]


def test_stands_back(tmp_path: Path) -> None:
    """A first generation warms at full speed, all at once; a worker that comes later in a thread that stands back, and ends."""
    with server_in("warming", tmp_path) as scene:
        server, gated = scene.server, scene.gated
        server.wait(lambda: len(gated.came("warming")) == 2, "both")
        assert {policy for pid in gated.came("warming") for policy in _policies(pid)} == {os.SCHED_OTHER}
        gated.open("warming")
        server.wait_ready()

        gated.close("rehearsal-2")
        gated.close("warming-2")
        server.send(SIGTTIN)
        server.wait(lambda: gated.came("warming-2"), "the new worker")
        (pid,) = gated.came("warming-2")
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        assert _policies(pid).count(os.SCHED_IDLE) == 1
        gated.open("warming-2")
        server.wait(lambda: gated.came("rehearsal-2"), "its synthetic load")
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        gated.open("rehearsal-2")
        assert pid in [worker["pid"] for worker in server.wait_state("active", 3)]
        assert set(_policies(pid)) == {os.SCHED_OTHER}


@BEHIND
def test_beside_another_server(tmp_path: Path) -> None:
    """A server that is told of others starts behind them: trial, import of the library, and its workers one after the other."""
    noted = tmp_path / "noted"
    with server_in("trial", tmp_path / "models", "-c", _noting(noted), patience=LAST, boot_timeout=10 * LAST, polite=1) as scene:
        server, gated = scene.server, scene.gated
        assert _policies(gated.came("trial")[0])[0] == os.SCHED_IDLE
        gated.close("warming")
        gated.open("trial")
        server.wait(lambda: gated.came("warming") and _waiting(scene), "one at the gate and one behind it")
        (pid,) = gated.came("warming")
        assert _policies(pid).count(os.SCHED_IDLE) == 1
        gated.open("warming")
        server.wait_ready()
        assert set(_policies(pid)) == {os.SCHED_OTHER}
        assert _imports(noted, server.process.pid) == [os.SCHED_IDLE]
        assert _policies(server.process.pid) == [os.SCHED_OTHER]


@BEHIND
def test_told_to_end_in_its_import(tmp_path: Path) -> None:
    """A server that starts behind others and is told to end while its library is imported does so at once."""
    noted = tmp_path / "noted"
    gate = tmp_path / "noted-gate"
    gate.touch()
    put(tmp_path / "models", "m", identity())
    with Server(tmp_path / "models", "-c", _noting(noted), ready=False, polite=1) as server:
        server.patience = LAST
        server.wait(lambda: _imports(noted, server.process.pid), "the import in the master")
        server.processes()
        server.send(SIGTERM)
        server.clean()


def test_one_at_a_time(tmp_path: Path) -> None:
    """In a reload the trial stands back, and the second worker begins when the first waits for it; both say so."""
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask) as asking:
        server, gated = scene.server, scene.gated
        gated.renew()
        for gate in ("trial", "warming"):
            gated.close(gate)
        server.send(SIGHUP)
        server.wait(lambda: gated.came("trial"), "the trial")
        assert _policies(gated.came("trial")[0])[0] == os.SCHED_IDLE
        gated.open("trial")
        server.wait(lambda: gated.came("warming") and _waiting(scene), "one at the gate and one behind it")
        (first,), (second,) = gated.came("warming"), _waiting(scene)
        assert (second["state"], len(server.status()["workers"])) == ("forked", 4)

        gated.close("warming-3")
        gated.open("warming")
        server.wait(lambda: gated.came("warming-3") == [second["pid"]], "the turn of the other")
        (before,) = (worker for worker in server.status()["workers"] if worker["pid"] == first)
        assert before["state"] == "waiting"
        gated.open("warming-3")
        server.wait_log("Generation 2 is open")
    assert {result for _, result, _ in asking.results} == {200}


def test_trial_begins_anew(tmp_path: Path) -> None:
    """A trial that is not done behind those that serve in a fifth of a boot's time is tried again at full speed."""
    with server_in("serving", tmp_path, boot_timeout=10) as scene:
        server, gated = scene.server, scene.gated
        gated.renew()
        gated.close("trial")
        server.send(SIGHUP)
        server.wait(lambda: len(gated.came("trial")) == 2, "another trial")
        assert set(_policies(gated.came("trial")[1])) == {os.SCHED_OTHER}
        server.wait_log("trial: not done behind those that serve in 2 s, begins anew")
        gated.open("trial")
        server.wait_log("Generation 2 is open")


def test_killed_in_its_turn(tmp_path: Path) -> None:
    """A replacement that is killed in its turn does not keep the other from its own, and comes back as well."""
    with server_in("serving", tmp_path, workers=3) as scene:
        server, gated = scene.server, scene.gated
        # The last of these: it ended between our look and gunicorn's.
        server.expect("was sent SIGKILL", "killed by SIGKILL", r"worker \d+ \(\w+\): ended$")
        gated.close("warming")
        for worker in server.status()["workers"][:2]:
            os.kill(worker["pid"], SIGKILL)
        server.wait(lambda: gated.came("warming") and _waiting(scene), "one at the gate and one behind it")
        (first,), (second,) = gated.came("warming"), _waiting(scene)
        os.kill(first, SIGKILL)
        server.wait(lambda: gated.came("warming") == [first, second["pid"]], "the turn of the other")

        gated.open("warming")
        server.wait_state("active", 3)
        assert [scene.ask() for _ in range(6)] == [200] * 6


def test_waiting_is_no_booting(tmp_path: Path) -> None:
    """Neither the wait for a turn nor that for the others' turns is ended by the deadline of a boot."""
    with server_in("serving", tmp_path, workers=MANY, boot_timeout=BOOT_TIMEOUT) as scene:
        scene.gated.close("warming", SLOW)
        scene.server.send(SIGHUP)
        scene.server.wait_log("Generation 2 is open")
        slots = scene.server.wait_state("active", MANY)
        waited = [worker["phases"].get("forked", 0) + worker["phases"].get("waiting", 0) for worker in slots]
        assert max(waited) > BOOT_TIMEOUT


def test_first_load_waits_for_a_replacement(tmp_path: Path) -> None:
    """Nor is the first generation's wait for one that was killed late in its boot, and whose place another has taken."""
    gated = Gated(tmp_path)
    gated.close("warming-1")
    with Server(tmp_path, ready=False, workers=2, boot_timeout=LATE) as server:
        server.expect("was sent SIGKILL", "killed by SIGKILL")
        server.wait(lambda: server.probe("/livez")[0] == 200, "the management process")
        server.wait(lambda: gated.came("warming-1"), "the one that will be killed")
        server.wait(lambda: "waiting for the others" in server.status()["workers"][0]["doing"], "the other one")
        first = server.status()["workers"][0]["pid"]

        def age() -> float:
            worker = server.status()["workers"][0]
            assert worker["pid"] == first, server.log
            return float(sum(worker["phases"].values()))

        server.wait(lambda: age() > LATE / 2, "half the time that a boot may take")
        os.kill(gated.came("warming-1")[0], SIGKILL)
        server.wait(lambda: age() > LATE, "more than a boot may take")
        gated.open("warming-1")
        server.wait_ready()
        assert server.status()["workers"][0]["pid"] == first


def test_bound_to_its_thread(tmp_path: Path) -> None:
    """A model whose Python must not be called from two threads is seen by the trial, and its replacements come up as well."""
    put(tmp_path, "m", identity(), python=BOUND)
    with Server(tmp_path) as server:
        server.expect("was sent SIGKILL", "killed by SIGKILL")
        server.wait_log("model m/1: in another thread: raised RuntimeError: not this thread; it warms in the thread that serves")
        os.kill(server.wait_state("active")[0]["pid"], SIGKILL)
        server.wait_log("killed by SIGKILL")
        server.wait_state("active")
        server.reload()
        assert server.infer("m", {"x": ("FP32", [[1.0, 2.0, 3.0]])})[0] == 200


@pytest.mark.skipif(not _share(os.getpid()), reason="this kernel gives sessions no share of the processors")
@BEHIND
@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
def test_session(late: bool, tmp_path: Path) -> None:  # noqa: FBT001 - as pytest gives it
    """A server that starts politely stands back as a whole until it opens, or until a step has taken as long as it may."""
    with server_in("trial", tmp_path, patience=LAST, polite=1, boot_timeout=20 if late else 10 * LAST) as scene:
        server = scene.server
        if not late:
            assert _share(server.process.pid) == "19"
        else:
            server.wait(lambda: _share(server.process.pid) == "0", "the share of everybody")
            assert server.status()["phase"] == "trying"
        scene.gated.open_all()
        server.wait_ready()
        assert {_share(pid) for pid in server.processes()} == {"0"}


@pytest.mark.skipif(not _share(os.getpid()), reason="this kernel gives sessions no share of the processors")
def test_session_of_others() -> None:
    """A server that shares its session with what has started it leaves that alone, and so does one that is not polite."""
    told = "import os, sys; from server import environment; print(open('/proc/self/autogroup').read())"
    environ = {**os.environ, "WARMFORK_POLITE": "1"}
    for polite, alone in ((True, False), (False, True)):
        given = environ if polite else {name: text for name, text in environ.items() if name != "WARMFORK_POLITE"}
        ran = subprocess.run(
            [sys.executable, "-c", told], cwd=PROJECT.parent, env=given, start_new_session=alone, capture_output=True, check=True
        )
        assert ran.stdout.split()[-1:] == [b"0"]
