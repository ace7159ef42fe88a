"""USR2: a new master takes over when it is warm, and if it fails the old one stays; clients and probes see neither."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN, SIGUSR2

import psutil
import pytest

from tests.orphan import adopt_orphans
from tests.phases import Scene, server_in
from tests.repeat import Repeat
from tests.server import PATIENCE, ROOT, Server
from workloads.watch import ended

_CONF = """
import os, runpy
globals().update(runpy.run_path({conf!r}))
if "GUNICORN_PID" in os.environ:
    {code}
"""

LONG = 100
"""Seconds that a request may be held, over a whole start."""
TITLES = ["warmfork: management", "warmfork: master", *2 * ["warmfork: worker  · active · gen  · cpu"]]


@contextmanager
def _unseen(scene: Scene) -> Iterator[None]:
    """Requests and probes all the while, of which none may show what happens inside."""
    with (
        Repeat(lambda: scene.server.probe("/readyz")[0], pause=0.005) as ready,
        Repeat(lambda: scene.server.probe("/livez")[0], pause=0.005) as live,
        Repeat(scene.ask, 3) as asking,
    ):
        yield
    assert {result for _, result, _ in ready.results} == {200}
    assert {result for _, result, _ in live.results} == {200}
    assert {result for _, result, _ in asking.results} == {200}


def _titles(server: Server) -> list[str]:
    return sorted(re.sub(r"\d+", "", title) for title in server.processes().values())


def _serving(scene: Scene) -> list[int]:
    return sorted(worker["pid"] for worker in scene.server.status()["workers"])


def _refused(scene: Scene, serving: list[int], line: str) -> None:
    """The old master has said why, and serves on with the same workers."""
    server = scene.server
    server.wait_log(rf"\[ERROR\] USR2 was refused: {line}")
    server.wait(lambda: re.search(f"USR2 was refused: {line}", " ".join(server.status()["reasons"])), "the reason")
    server.wait(lambda: len(server.processes()) == 4, "the end of all that was the new master's")
    assert serving == _serving(scene)


def test_hand_over(tmp_path: Path) -> None:
    """Twice in a row, under load: no request and no probe fails; a scaled count stays, totals begin anew, nothing is left."""
    with server_in("serving", tmp_path, workers=1, max_workers=2) as scene, _unseen(scene):
        server = scene.server
        server.send(SIGTTIN)
        server.wait_state("active", 2)
        for _ in range(2):
            old = server.processes()
            assert server.infer("gated", {"x": ("FP32", [[1.0]])})[0] == 400
            server.hand_over()
            assert not old.keys() & server.processes().keys()
            server.wait(lambda: _titles(server) == TITLES, "the titles")  # gunicorn gives the master another for a moment
            page = server.status()
            assert page["generation"] == 1
            assert page["reasons"] == []
            assert [worker["errors"] for worker in page["workers"]] == [0, 0]
        server.reload()
        server.wait_log("Master has been promoted", count=2)


def test_status_follows(tmp_path: Path) -> None:
    """While the new master gets warm, the old one's pages say how far it is; what that is asked meanwhile is not forgotten."""
    with server_in("serving", tmp_path) as scene, _unseen(scene):
        server, gated = scene.server, scene.gated
        server.expect("USR2 was refused: a new master")
        gated.close("trial")
        server.send(SIGUSR2)
        server.wait(
            lambda: re.fullmatch(r"new master \d+: .*model gated/1.*", server.status()["doing"]), "the new master's trial"
        )
        server.send(SIGUSR2)
        server.wait_log(r"USR2 was refused: a new master \(\d+\) is under way")
        for number, name, count in ((SIGTTIN, "ttin", 1), (SIGHUP, "hup", 1), (SIGTTIN, "ttin", 2)):
            server.send(number)
            server.wait_log(f"Handling signal: {name}", count=count)
        adopt_orphans()
        gated.open("trial")
        server.follow()
        server.wait(lambda: len(server.wait_state("active")) == 4 and server.status()["generation"] == 2, "what was asked")


def test_reload_meanwhile(tmp_path: Path) -> None:
    """A HUP while a new master gets warm is left to that, so that memory need not hold three of everything.

    Where that ends the old one does it, and still says why it has ended.
    """
    with server_in("serving", tmp_path) as scene, _unseen(scene):
        server, gated = scene.server, scene.gated
        server.expect("USR2 was refused: the new master was killed by SIGKILL")
        gated.close("trial")
        server.send(SIGUSR2)
        server.wait(lambda: gated.came("trial"), "the new master's trial")
        server.send(SIGHUP)
        server.wait_log("the reload is left to it")
        new = re.search(r"new master (\d+)", server.status()["doing"])
        assert new
        os.kill(int(new[1]), SIGKILL)
        server.wait_log("USR2 was refused: the new master was killed by SIGKILL")
        gated.open("trial")
        server.wait_log("Generation 2 is open")
        assert server.log.index("USR2 was refused") < server.log.index("Generation 2 is open")
        assert any("USR2 was refused" in reason for reason in server.status()["reasons"])


def test_refused(tmp_path: Path) -> None:
    """A new master whose repository is wrong, whose model fails to warm, or that is killed: the old one stays, and tries anew."""
    with server_in("serving", tmp_path) as scene, _unseen(scene):
        server, gated = scene.server, scene.gated
        server.expect("USR2 was refused", "gated/1", "exited with code", "Shutting down: Master", "was sent SIGKILL")
        serving = _serving(scene)
        model = tmp_path / "gated" / "1" / "model.onnx"
        kept = model.read_bytes()
        model.unlink()
        server.send(SIGUSR2)
        _refused(scene, serving, r"the new master ended with status 78: .*model\.onnx")
        model.write_bytes(kept)
        for code, line in (
            ("raise RuntimeError('no luck')", r"the new master ended with status 70: .*raised RuntimeError: no luck"),
            ("os.kill(os.getppid(), signal.SIGKILL)", r"the new master was killed by SIGKILL"),
        ):
            gated.close("warming", code)
            server.send(SIGUSR2)
            _refused(scene, serving, line)
            gated.open("warming")
        server.hand_over()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit(9)", "the new master ended with status 9"),
        ("os.environ['WARMFORK_WORKERS'] = 'x'", r"the new master ended with status 78: WARMFORK_WORKERS='?x"),
    ],
    ids=["raises", "setting"],
)
def test_code_that_does_not_start(code: str, why: str, tmp_path: Path) -> None:
    """New code that raises before it can say a word is refused with its status, one with a wrong setting in its words."""
    (tmp_path / "models").mkdir()
    conf = tmp_path / "conf.py"
    conf.write_text(_CONF.format(conf=str(ROOT / "gunicorn.conf.py"), code=code), encoding="utf-8")
    with server_in("serving", tmp_path / "models", "-c", str(conf)) as scene, _unseen(scene):
        scene.server.expect("USR2 was refused", "WARMFORK_WORKERS")
        serving = _serving(scene)
        scene.server.send(SIGUSR2)
        _refused(scene, serving, why)


def test_term_ends_both(tmp_path: Path) -> None:
    """TERM while a new master gets warm is the end of the server, not of one of two."""
    with server_in("serving", tmp_path) as scene:
        scene.gated.close("warming")
        scene.server.send(SIGUSR2)
        scene.server.wait(lambda: scene.gated.came("warming"), "the new master's workers")
        scene.server.stop()


def test_term_while_the_old_one_finishes(tmp_path: Path) -> None:
    """A new master that is told to end, while the old one still answers a long request, drains: nobody else serves any more."""
    with server_in("request", tmp_path, drain=5, request_timeout=LONG) as scene:
        server = scene.server
        serving = set(_serving(scene))
        adopt_orphans()
        server.send(SIGUSR2)
        server.wait_log("Generation 1 is open", count=2)
        server.wait(lambda: list(server.processes().values()).count("warmfork: master") == 2, "two masters")
        (pid,) = [pid for pid, title in server.processes().items() if title == "warmfork: master" and pid != server.process.pid]
        master = psutil.Process(pid)
        server.wait(lambda: len(serving & server.processes().keys()) == 1, "the old one's idle worker to leave")
        server.wait(lambda: not serving & set(_serving(scene)), "the new master's page")

        master.terminate()
        server.wait(lambda: "draining" in " ".join(server.probe("/readyz")[1].get("reasons", [])), "the drain")
        assert scene.ask() == 200
        server.wait(lambda: ended(master.pid), "the end of the new master")
        scene.gated.open("request")
        assert scene.held[0].result()[0] == 200
        server.clean(0)


def test_term_to_one_that_finishes(tmp_path: Path) -> None:
    """The first TERM to an old master that has handed over costs no request that it still answers; the new one serves on."""
    with server_in("request", tmp_path, request_timeout=LONG) as scene:
        server = scene.server
        serving = set(_serving(scene))
        adopt_orphans()
        server.send(SIGUSR2)
        server.wait(lambda: len(serving & server.processes().keys()) == 1, "the old one's idle worker to leave")
        server.wait(lambda: not serving & set(_serving(scene)), "the new master's page")
        server.wait_log("serves; this one leaves")

        server.send(SIGTERM)
        with pytest.raises(TimeoutError):  # gunicorn looks for signals ten times a second
            scene.held[0].result(1)
        scene.gated.open("request")
        assert scene.held[0].result()[0] == 200
        server.follow()
        assert scene.ask() == 200


def test_term_before_the_old_one_leaves(tmp_path: Path) -> None:
    """A new master that is told to end when it serves and the old one has not left yet: the old one stays and serves on."""
    with server_in("serving", tmp_path) as scene, socket.socket() as probe:
        server = scene.server
        server.expect("USR2 was refused", "Shutting down: Master")
        serving = _serving(scene)
        server.send(SIGUSR2)
        server.wait_log("Generation 1 is open", count=2)
        probe.connect(("127.0.0.1", server.management_port))
        probe.sendall(b"GET /livez HTTP/1.1\r\n")  # the old one waits for the rest
        new = int(server.wait_log(r"The new master \((\d+)\) serves")[1])
        os.kill(new, SIGTERM)
        server.wait_log("Worker exiting")
        probe.close()
        server.wait_log("USR2 was refused: the new master ended with status 0: it was told to end")
        server.wait(lambda: len(server.processes()) == 4 and serving == _serving(scene), "the old one alone")
        assert scene.ask() == 200
        server.hand_over()


def test_old_master_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the old master while the new one gets warm: that answers the probes at once, and serves when it is warm."""
    with server_in("serving", tmp_path) as scene:
        server = scene.server
        adopt_orphans()
        scene.gated.close("warming")
        server.send(SIGUSR2)
        server.wait(lambda: scene.gated.came("warming"), "the new master's workers")
        server.send(SIGKILL)
        server.follow(-SIGKILL)
        server.wait(lambda: server.probe("/livez")[0] == 200, "somebody who answers")
        assert server.probe("/readyz")[0] == 503
        scene.gated.open("warming")
        server.wait_ready()
        assert scene.ask() == 200


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old master tells systemd which process is the main one from now on, before it ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        (tmp_path / "models").mkdir()
        with server_in("serving", tmp_path / "models") as scene:
            scene.server.hand_over()
            said = b""
            while not (found := re.search(rb"MAINPID=(\d+)", said)):
                said = notify.recv(4096)
            assert int(found[1]) == scene.server.process.pid
