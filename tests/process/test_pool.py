"""How many workers there are, and who of them takes traffic: with a quorum below all, and whatever comes together."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTTIN, SIGTTOU

import pytest

from tests.models import failing, identity, put
from tests.phases import Scene, server_in
from tests.repeat import Repeat
from tests.server import Server
from workloads.watch import ended

PLAIN = {"x": ("FP32", [[1.0, 2.0, 3.0]])}
# The last of these: it ended between our look and gunicorn's.
KILLED = ("was sent SIGKILL", "killed by SIGKILL", r"worker \d+ \(\w+\): ended( at .*)?$")
EVENTS = 15
MOST = 4
STOPPED = 20
"""Seconds to boot; a worker that stands still in its turn is waited for a fifth of that."""


_HOLD = "open(%r, 'w').close(), [time.sleep(0.005) for _ in iter(lambda: os.path.exists(%r), False)]"
"""Say that one is here, and wait until a file is gone."""


def _by_generation(server: Server) -> dict[tuple[int, str], int]:
    """How many workers of a generation are in a state."""
    return Counter((worker["generation"], worker["state"]) for worker in server.status()["workers"])


def test_standby_that_is_proven_first(tmp_path: Path) -> None:
    """Of a new generation that opens with one proven worker, that one takes traffic; who was stopped in its boot is the pool."""
    with (
        server_in("serving", tmp_path, workers=1, standby=1, ready_quorum=1, boot_timeout=STOPPED) as scene,
        Repeat(lambda: scene.server.probe("/readyz")[0], pause=0.005) as ready,
        Repeat(scene.ask) as asking,
    ):
        server = scene.server
        server.wait_state("standby")
        scene.gated.close("warming-2")
        server.send(SIGHUP)
        server.wait(lambda: scene.gated.came("warming-2"), "the first worker of generation 2")
        (stopped,) = scene.gated.came("warming-2")
        os.kill(stopped, SIGSTOP)
        server.wait_log("Generation 2 is open")
        server.wait(lambda: _by_generation(server) == {(2, "active"): 1, (2, "warming"): 1}, "the old to leave")
        assert scene.ask() == 200

        scene.gated.open("warming-2")
        os.kill(stopped, SIGCONT)
        server.wait(lambda: _by_generation(server) == {(2, "active"): 1, (2, "standby"): 1}, "a full pool")
        assert server.wait_state("standby")[0]["pid"] == stopped
    assert {status for _, status, _ in ready.results} == {200}
    assert {status for _, status, _ in asking.results} == {200}


def test_a_place_is_taken_between_loads(tmp_path: Path) -> None:
    """A worker is killed while a reload loads two models: the warm pool has its place before the second one is loaded."""
    folder = tmp_path / "gates"
    folder.mkdir()
    gates = {name: folder / name for name in ("a", "b")}
    came = {name: folder / f"{name}.came" for name in gates}
    for name, gate in gates.items():
        put(tmp_path / "models", name, identity(), python=failing("master", _HOLD % (str(came[name]), str(gate))))
    with Server(tmp_path / "models", standby=1) as server:
        (active,) = server.wait_state("active")
        server.wait_state("standby")
        for name, gate in gates.items():
            came[name].unlink()
            gate.touch()
            (tmp_path / "models" / name / "1" / "model.py").touch()
        server.expect(*KILLED)
        server.send(SIGHUP)
        server.wait(came["a"].exists, "the first load")
        os.kill(active["pid"], SIGKILL)
        server.wait(lambda: ended(active["pid"]), "its end")
        gates["a"].unlink()
        server.wait(came["b"].exists, "the second load")
        assert active["pid"] != server.wait_state("active")[0]["pid"]
        gates["b"].unlink()
        server.wait_log("Generation 2 is open")


def test_old_workers_leave_one_for_one(tmp_path: Path) -> None:
    """With a quorum of one among three, an old worker leaves only when a new one takes traffic: never fewer than three do."""

    def active(scene: Scene) -> int:
        return sum(worker["state"] == "active" for worker in scene.server.status()["workers"])

    with (
        server_in("serving", tmp_path, workers=3, ready_quorum=1) as scene,
        Repeat(lambda: active(scene), pause=0.01) as counts,
        Repeat(scene.ask) as asking,
    ):
        server = scene.server
        scene.server.wait_state("active", 3)  # a quorum of one: readiness does not wait for the others
        began = time.monotonic()
        for slot in (4, 5):
            scene.gated.close(f"warming-{slot}")
        server.send(SIGHUP)
        for left, slot in ((2, 4), (1, 5), (0, 0)):
            expected = {(1, "active"): left, (2, "active"): 3 - left, (2, "warming"): min(left, 1), (2, "forked"): left - 1}
            server.wait(
                lambda expected=expected: _by_generation(server) == {key: n for key, n in expected.items() if n > 0},  # type: ignore[misc]
                f"{left} old workers",
            )
            if slot:
                scene.gated.open(f"warming-{slot}")
    assert min(count for asked, count, _ in counts.results if asked > began) >= 3
    assert {status for _, status, _ in asking.results} == {200}


@pytest.mark.parametrize("together", [True, False], ids=["one turn", "at once"])
def test_fewer_while_all_are_killed(together: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """`kill -9` of all three workers and TTOU, in one turn of the master's loop or nearly: two come back, and nobody else."""
    put(tmp_path, "m", identity())
    with Server(tmp_path, workers=3) as server:
        server.expect(*KILLED)
        old = {worker["pid"] for worker in server.wait_state("active", 3)}
        if together:
            os.kill(server.process.pid, SIGSTOP)
        for pid in old:
            os.kill(pid, SIGKILL)
        if together:
            os.kill(server.process.pid, SIGCONT)  # before TTOU: it takes back what would stop a process
        server.send(SIGTTOU)
        server.wait_log("Handling signal: ttou")
        server.wait(lambda: not old & set(server.processes()), "the end of the old")
        server.wait(lambda: _by_generation(server) == {(1, "active"): 2}, "two workers")
        server.wait(lambda: len(server.processes()) == 4, "nobody else")
        server.wait_ready()
        assert server.infer("m", PLAIN)[0] == 200


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_comes_together(seed: int, tmp_path: Path) -> None:
    """TTIN, TTOU, HUP and `kill -9` in any order: in the end as many workers as wanted, all of one generation, and ready."""
    chance = random.Random(seed)  # noqa: S311 - the same order each time, no secret
    put(tmp_path, "m", identity(), "")
    with Server(tmp_path, workers=2, standby=1, max_workers=MOST) as server:
        server.expect(*KILLED, r"generation \d+ was refused", r"Worker \(pid:\d+\) exited with code")
        server.wait_state("standby")
        wanted, handled = 2, Counter[str]()
        for _ in range(EVENTS):
            event = chance.choice(("ttin", "ttou", "hup", "kill", "kill"))
            if event == "kill":
                pids = [worker["pid"] for worker in server.status()["workers"] if worker["pid"]]
                if pids:
                    _kill(chance.choice(pids))
            else:
                handled[event] += 1
                server.send({"ttin": SIGTTIN, "ttou": SIGTTOU, "hup": SIGHUP}[event])
                server.wait_log(f"Handling signal: {event}", count=handled[event])
                wanted = min(max(wanted + {"ttin": 1, "ttou": -1, "hup": 0}[event], 1), MOST)
            until = time.monotonic() + chance.uniform(0, 0.3)
            server.wait(lambda until=until: time.monotonic() > until, "the next event")  # type: ignore[misc]

        def calm() -> bool:
            page = server.status()
            newest = {(page["generation"], "active"): wanted, (page["generation"], "standby"): 1}
            return not page["building"] and _by_generation(server) == newest

        server.wait(calm, f"{wanted} active workers and one in the pool")
        server.wait(lambda: len(server.processes()) == wanted + 3, "nobody else")
        assert server.status()["targets"] == {"active": wanted, "standby": 1}
        server.wait_ready()
        assert server.infer("m", PLAIN)[0] == 200
        server.reload()
        server.wait(calm, "the same after a reload")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, SIGKILL)
    except ProcessLookupError:
        return
