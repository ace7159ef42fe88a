"""TTIN, TTOU, the warm pool and HUP: what replaces something is warm before what it replaces lets go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2

import pytest

from tests.orphan import adopt_orphans
from tests.phases import SHAPES, Scene, server_in
from tests.repeat import Repeat


def _titles(scene: Scene, generation: int = 1) -> list[str]:
    """How many workers `ps` shows by role, as `active`, `standby`."""
    titles = scene.server.processes().values()
    found = [re.fullmatch(rf"warmfork: worker \d+ · (active|standby) · gen {generation} · cpu", title) for title in titles]
    return sorted(match[1] for match in found if match)


def _states(scene: Scene) -> list[str]:
    return sorted(worker["state"] for worker in scene.server.status()["workers"])


def test_one_more_and_one_fewer(tmp_path: Path) -> None:
    """TTIN's worker is warm before it is active; TTOU takes the newest; no request fails; both stop at their bounds."""
    with server_in("serving", tmp_path, max_workers=3) as scene, Repeat(scene.ask, 2) as asking:
        server = scene.server
        old = {worker["pid"] for worker in server.status()["workers"]}
        scene.gated.close("warming")
        server.send(SIGTTIN)
        server.wait(lambda: scene.gated.came("warming"), "the new worker")
        assert _states(scene) == ["active", "active", "warming"]
        scene.gated.open("warming")
        workers = server.wait_state("active", 3)
        assert all(set(worker["models"]["gated/1"]) == set(SHAPES) for worker in workers)
        assert server.status()["targets"] == {"active": 3, "standby": 0}

        server.send(SIGTTIN)
        server.wait_log(r"TTIN refused: 3 workers are WARMFORK_MAX_WORKERS")
        for _ in range(2):
            before = len(server.status()["workers"])
            server.send(SIGTTOU)
            server.wait(lambda before=before: len(server.status()["workers"]) == before - 1, "one fewer")  # type: ignore[misc]
        assert {worker["pid"] for worker in server.status()["workers"]} < old
        server.send(SIGTTOU)
        server.wait_log(r"TTOU refused: 1 workers.*WARMFORK_READY_MIN")
        assert _states(scene) == ["active"]
    assert {result for _, result, _ in asking.results} == {200}


def test_warm_pool(tmp_path: Path) -> None:
    """A standby takes the place of a killed worker or of TTIN at once, and the pool is filled again."""
    with server_in("serving", tmp_path, workers=1, standby=1, max_workers=2) as scene:
        server = scene.server
        server.expect("was sent SIGKILL", "killed by SIGKILL")
        server.wait_state("standby")
        assert _states(scene) == ["active", "standby"]
        assert _titles(scene) == ["active", "standby"]
        active, standby = (server.wait_state(state)[0]["pid"] for state in ("active", "standby"))

        scene.gated.close("warming")
        os.kill(active, SIGKILL)
        server.wait(lambda: scene.gated.came("warming"), "who fills the pool")
        server.wait(lambda: _states(scene) == ["active", "warming"], "the promotion, which waits for nobody")
        assert server.wait_state("active")[0]["pid"] == standby
        assert scene.ask() == 200
        scene.gated.open("warming")
        server.wait_state("standby")
        assert _titles(scene) == ["active", "standby"]

        standby = server.wait_state("standby")[0]["pid"]
        scene.gated.close("warming")
        server.send(SIGTTIN)
        server.wait(lambda: _states(scene) == ["active", "active", "warming"], "the promotion")
        assert standby in [worker["pid"] for worker in server.wait_state("active", 2)]
        scene.gated.open("warming")
        server.wait(lambda: _titles(scene) == ["active", "active", "standby"], "a full pool")


def test_logs_opened_anew(tmp_path: Path) -> None:
    """USR1 costs nobody his life: not who boots, not who is held back."""
    with server_in("serving", tmp_path, workers=1, standby=1, max_workers=2) as scene:
        server = scene.server
        server.wait_state("standby")
        scene.gated.close("warming")
        server.send(SIGTTIN)
        server.wait(lambda: _states(scene) == ["active", "active", "warming"], "who fills the pool")
        before = sorted(worker["pid"] for worker in server.status()["workers"])
        server.send(SIGUSR1)
        server.wait_log("Handling signal: usr1")
        scene.gated.open("warming")
        server.wait_state("standby")
        server.send(SIGUSR1)
        server.wait_log("Handling signal: usr1", count=2)
        server.send(SIGTTOU)
        server.wait(lambda: len(server.status()["workers"]) == 2, "one fewer")
        assert {worker["pid"] for worker in server.status()["workers"]} < set(before)


def test_pool_before_who_still_boots(tmp_path: Path) -> None:
    """Who fills the pool is warm before who replaces the active one: it takes the traffic, and the other one fills the pool."""
    with server_in("serving", tmp_path, workers=1, standby=1) as scene:
        server, gated = scene.server, scene.gated
        server.expect("was sent SIGKILL", "killed by SIGKILL")
        for slot in (0, 1):
            (pid,) = [worker["pid"] for worker in server.wait_state("active") if worker["slot"] == slot]
            server.wait(lambda: len(server.status()["workers"]) == 2, "whoever is to come")
            gated.close(f"warming-{slot}")
            os.kill(pid, SIGKILL)
            server.wait(lambda slot=slot: gated.came(f"warming-{slot}"), "who takes its slot")  # type: ignore[misc]
            if not slot:
                server.wait(lambda: _states(scene) == ["active", "warming"], "the pool to take its place")

        gated.open("warming-0")
        server.wait(lambda: _states(scene) == ["active", "warming"], "who filled the pool")
        assert scene.ask() == 200
        gated.open("warming-1")
        server.wait(lambda: _titles(scene) == ["active", "standby"], "a full pool")


def test_reload(tmp_path: Path) -> None:
    """Generation 2 opens as a whole, beside live traffic of which nothing fails, and readiness does not show it."""
    with (
        server_in("serving", tmp_path) as scene,
        Repeat(lambda: scene.server.probe("/readyz")[0], pause=0.005) as ready,
        Repeat(scene.ask, 3) as asking,
    ):
        server = scene.server
        old = {worker["pid"] for worker in server.status()["workers"]}
        scene.gated.close("warming-3")
        server.send(SIGHUP)
        server.wait(lambda: "waiting" in _states(scene) and scene.gated.came("warming-3"), "one that waits for the other")
        assert server.status()["generation"] == 1
        assert old < {worker["pid"] for worker in server.status()["workers"]}
        scene.gated.open("warming-3")
        server.wait_log("Generation 2 is open")
        server.wait(lambda: not old & set(server.processes()), "the old to leave")

        assert _titles(scene, 2) == ["active", "active"]
        assert server.status()["generation"] == 2
        assert scene.ask() == 200
    assert {result for _, result, _ in ready.results} == {200}
    assert {result for _, result, _ in asking.results} == {200}


def test_reload_twice(tmp_path: Path) -> None:
    """A second HUP during the first is done after it."""
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask, 2) as asking:
        server = scene.server
        scene.gated.close("warming")
        server.send(SIGHUP)
        server.wait(lambda: scene.gated.came("warming"), "generation 2")
        server.send(SIGHUP)
        server.wait_log("A reload is under way; the next begins after it")
        scene.gated.open("warming")
        server.wait_log("Generation 3 is open")
        server.wait(lambda: _titles(scene, 3) == ["active", "active"] and len(server.processes()) == 4, "the old to leave")

        assert server.log.index("Generation 2 is open") < server.log.index("Generation 3 is open")
    assert {result for _, result, _ in asking.results} == {200}


def test_old_workers_in_a_reload(tmp_path: Path) -> None:
    """While a generation comes, the old one grows and shrinks as asked and loses nobody for good; the new one has as many."""
    with server_in("serving", tmp_path, max_workers=3) as scene, Repeat(scene.ask) as asking:
        server = scene.server
        server.expect("was sent SIGKILL", "killed by SIGKILL")

        def active() -> list[int]:
            return [each["pid"] for each in server.status()["workers"] if (each["state"], each["generation"]) == ("active", 1)]

        scene.gated.renew()
        scene.gated.close("warming-2")
        server.send(SIGHUP)
        server.wait(lambda: scene.gated.came("warming-2"), "the first worker of generation 2")
        server.send(SIGTTIN)
        server.wait(lambda: len(active()) == 3, "one more of the old")
        killed = active()[0]
        os.kill(killed, SIGKILL)
        server.wait(lambda: killed not in active() and len(active()) == 3, "another in its place")
        for count in (2, 1):  # one after the other: of two alike that come at once the kernel keeps one
            server.send(SIGTTOU)
            server.wait(lambda count=count: len(active()) == count, "one fewer")  # type: ignore[misc]
        server.send(SIGTTIN)
        server.wait(lambda: len(active()) == 2, "one more again")
        assert server.status()["generation"] == 1

        scene.gated.open("warming-2")
        server.wait_log("Generation 2 is open")
        server.wait(lambda: _titles(scene, 2) == ["active", "active"] and len(server.processes()) == 4, "the old to leave")
        assert server.status()["reasons"] == []
    assert [result for _, result, _ in asking.results if result != 200][1:] == []  # at most the one in the killed worker


def test_new_master_in_a_reload(tmp_path: Path) -> None:
    """USR2 during a HUP is done after it: memory never holds three of everything, and neither is lost."""
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask, 2) as asking:
        server = scene.server
        scene.gated.close("warming")
        server.send(SIGHUP)
        server.wait(lambda: scene.gated.came("warming"), "generation 2")
        adopt_orphans()
        server.send(SIGUSR2)
        server.wait_log("A reload is under way; the new master starts after it")
        scene.gated.open("warming")
        server.wait_log("Generation 2 is open")
        server.follow()
        server.wait(lambda: _titles(scene) == ["active", "active"], "the new master's workers")
    assert {result for _, result, _ in asking.results} == {200}


@pytest.mark.parametrize("place", ["trial", "load", "warming", "rehearsal"])
def test_term_in_a_reload(place: str, tmp_path: Path) -> None:
    """TERM is heard in every phase of a reload, also where the master itself is in the load."""
    with server_in("serving", tmp_path) as scene:
        scene.gated.renew()
        scene.gated.close(place)
        scene.server.send(SIGHUP)
        scene.server.wait(lambda: scene.gated.came(place), "the reload")
        scene.server.send(SIGTERM)
        scene.server.clean(0)


@pytest.mark.parametrize("place", ["trial", "warming"])
def test_kill_in_a_reload(place: str, tmp_path: Path) -> None:
    """A new generation that loses a process in its boot is refused as a whole; the old one serves on, and can reload again."""
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask, 2) as asking:
        server = scene.server
        server.expect("was sent SIGKILL", "(?i)generation 2 was refused: .*(killed by SIGKILL|the child ended)")
        old = [worker["pid"] for worker in server.status()["workers"]]
        scene.gated.renew()
        scene.gated.close(place)
        server.send(SIGHUP)
        server.wait(lambda: scene.gated.came(place), "the reload")
        os.kill(scene.gated.came(place)[0], SIGKILL)
        server.wait_log("(?i)generation 2 was refused")
        server.wait(lambda: [worker["pid"] for worker in server.status()["workers"]] == old, "all of generation 2 to end")
        assert server.probe("/readyz")[0] == 200
        assert any("generation 2 was refused" in reason for reason in server.status()["reasons"])

        scene.gated.open(place)
        server.send(SIGHUP)
        server.wait_log("Generation 3 is open")
        assert server.status()["reasons"] == []
        server.wait(lambda: _titles(scene, 3) == ["active", "active"], "generation 3")
    assert {result for _, result, _ in asking.results} == {200}
