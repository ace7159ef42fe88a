"""Blue and green behind a real HAProxy with the configuration shipped: a server comes, is watched, and goes again if it must."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL, SIGTERM

import psutil
import pytest

from deploy.haproxy.runtime_api import RuntimeApi
from tests.phases import HELD, Gated
from tests.repeat import Repeat
from tests.server import PATIENCE, ROOT, Server, held_port

pytestmark = pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")

COLOURS = ("blue", "green")
CLIENTS = 4
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": HELD["x"][1]}]}).encode()
LOOSE = ("--p95-ms", "60000", "--requests", "1", "--steps", "50", "--step-seconds", "0.3")
"""Bounds that only a server without an answer breaks."""


class Run:
    """One run of the script; all that it and the server that it starts write stands in `log`."""

    def __init__(self, stage: Stage, *arguments: str, start: bool = True) -> None:
        """Run it, to start the other server unless `start` is false."""
        self.stage = stage
        self.file = stage.folder / f"run-{time.monotonic_ns()}"
        script = [sys.executable, "-m", "deploy.haproxy.blue_green", "--socket", str(stage.api.path), *arguments]
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "--pid", str(stage.pid_file)]
        settings = {"WARMFORK_MODELS": str(stage.folder / "green"), "WARMFORK_WORKERS": "1", "WARMFORK_THREADS": "1"}
        with self.file.open("wb") as log:
            self.process = subprocess.Popen(
                [*script, "--", *(gunicorn if start else [])], cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """All that was written so far."""
        return self.file.read_text(encoding="utf-8")

    def wait_log(self, line: str) -> None:
        """Wait until `line` stands in the log."""
        end = time.monotonic() + PATIENCE
        while not re.search(line, self.log):
            assert time.monotonic() < end, f"no {line!r} in:\n{self.log}"
            assert self.process.poll() is None, f"ended without {line!r}:\n{self.log}"
            time.sleep(0.01)

    def ends(self, status: int, line: str) -> None:
        """Wait for the end: `status`, and `line` in the log."""
        assert status == self.process.wait(PATIENCE), self.log
        assert re.search(line, self.log), self.log

    def fails(self, why: str) -> None:
        """Wait until the script has gone back: blue takes all, green is ended, and the last line says why."""
        self.ends(1, rf"blue_green: failed: .*{why}.*; blue serves\n")
        self.stage.serves("blue")
        assert self.stage.api.traffic("green").status == "MAINT"
        assert not self.stage.pid_file.exists() or not _runs(self.stage.green)


class Stage:
    """HAProxy, and blue, which serves; green comes and goes."""

    def __init__(self, folder: Path, listener: socket.socket, blue: Server, gated: Gated) -> None:
        """HAProxy listens on `listener`; `gated` is green's model."""
        self.folder, self.blue, self.gated = folder, blue, gated
        self.port = listener.getsockname()[1]
        self.api = RuntimeApi(folder / "admin.sock", "warmfork")
        self.pid_file = folder / "green.pid"

    @property
    def green(self) -> int:
        """The pid of green's master."""
        return int(self.pid_file.read_text(encoding="utf-8"))

    def ask(self) -> int:
        """One inference through HAProxy, on a connection of its own: its status. Raises `OSError` where it has none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v2/models/gated/infer", BODY)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def load(self) -> Repeat:
        """Requests from four clients, until its end."""
        return Repeat(self.ask, threads=CLIENTS, pause=0.005)

    def serves(self, colour: str) -> None:
        """The next requests are answered by `colour`; the other one gets none but those that were on their way."""
        before = {name: self.api.traffic(name).answered for name in COLOURS}
        assert [self.ask() for _ in range(10)] == [200] * 10
        came = {name: self.api.traffic(name).answered - before[name] for name in COLOURS}
        assert came.pop(colour) >= 10
        assert max(came.values()) <= CLIENTS


def _failed(load: Repeat) -> list[object]:
    assert load.results
    return [result for _, result, _ in load.results if result != 200]


@contextmanager
def _haproxy(folder: Path, environment: dict[str, str], listener: socket.socket) -> Iterator[None]:
    given = {**os.environ, **environment, "LISTEN": f"fd@{listener.fileno()}", "ADMIN_SOCKET": str(folder / "admin.sock")}
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", ROOT / "deploy" / "haproxy" / "haproxy.cfg"],  # noqa: S607 - wherever it is installed
            env=given,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Blue serves behind HAProxy; the ports of all are held by sockets that do not listen, so that nobody else is given them."""
    folder = tmp_path_factory.mktemp("stage")
    for colour in COLOURS:
        (folder / colour).mkdir()
    Gated(folder / "blue")
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        addresses = {}
        for colour in COLOURS:
            workers, status = (stack.enter_context(held_port()).getsockname()[1] for _ in range(2))
            addresses[colour] = f"127.0.0.1:{workers}", f"127.0.0.1:{status}"
            environment |= {colour.upper(): f"127.0.0.1:{workers}", f"{colour.upper()}_MANAGEMENT_PORT": str(status)}
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        bind, management_bind = addresses["blue"]
        blue = stack.enter_context(Server(folder / "blue", bind=bind, management_bind=management_bind))
        stack.enter_context(_haproxy(folder, environment, listener))
        stage = Stage(folder, listener, blue, Gated(folder / "green"))
        blue.wait((folder / "admin.sock").exists, "HAProxy's socket")
        blue.wait(lambda: [stage.api.traffic(name).status for name in COLOURS] == ["UP", "DOWN"], "HAProxy's checks")
        yield stage


@pytest.fixture(autouse=True)
def _clean(stage: Stage) -> Iterator[None]:
    yield
    stage.gated.open_all()
    if stage.pid_file.exists():
        if _runs(stage.green):
            os.kill(stage.green, SIGKILL)
        stage.pid_file.unlink()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_there_and_back(stage: Stage) -> None:
    """No request fails while green comes and takes all, nor while blue, which still runs, takes it back and green is ended."""
    with stage.load() as load:
        Run(stage, *LOOSE, "--bake", "0.5").ends(0, "green serves, blue takes no requests")
        stage.serves("green")
        green = stage.green
        Run(stage, *LOOSE, "--bake", "0.5", "--keep-old", "0", start=False).ends(0, "blue serves.*\n.*green has ended")
        stage.serves("blue")
    assert _failed(load) == []
    assert not _runs(green)


def test_kept(stage: Stage) -> None:
    """The old server is kept for an hour: it runs on if it takes requests again, and is not waited for once it has ended."""
    green = Run(stage, *LOOSE, "--bake", "0.5", "--keep-old", "3600")
    with stage.load():
        green.wait_log("green serves, blue takes no requests")
        stage.api.set({"blue": "state ready", "green": "state maint"})
        green.ends(0, "blue runs on: it takes requests again")
    stage.serves("blue")
    with stage.load():
        Run(stage, *LOOSE, "--bake", "0.5", start=False).ends(0, "green serves, blue takes no requests")
        back = Run(stage, *LOOSE, "--bake", "0.5", "--keep-old", "3600", start=False)
        back.wait_log("blue serves, green takes no requests")
        os.kill(stage.green, SIGKILL)
        back.ends(0, "green has ended")


def test_never_ready(stage: Stage) -> None:
    """Green hangs in its warmup: it is ended at the bound, blue's weight was not touched and no request failed."""
    stage.gated.close("warming")
    weight = stage.api.traffic("blue").weight
    with stage.load() as load:
        Run(stage, *LOOSE, "--start-timeout", "4").fails("was not ready after 4 s: ")
    assert _failed(load) == []
    assert weight == stage.api.traffic("blue").weight


def test_slow(stage: Stage) -> None:
    """Green is proven, and slower than blue on what clients send: it goes again by itself, and no request failed."""
    stage.gated.close("request", "time.sleep(0.3)")
    with stage.load() as load:
        Run(stage, "--baseline", "1", "--requests", "3", "--p95-factor", "2", "--steps", "50", "--step-seconds", "30").fails(
            "p95 is"
        )
    assert _failed(load) == []


def test_slow_in_the_end(stage: Stage) -> None:
    """Green does well in its step and becomes slow once it takes all: what went well before does not hide it."""
    with stage.load() as load:
        bound = ("--p95-ms", "1000", "--requests", "3", "--steps", "50", "--step-seconds", "4", "--bake", "30")
        run = Run(stage, *bound)
        run.wait_log("green gets all")
        stage.gated.close("request", "time.sleep(1.5)")
        run.fails("p95 is")
    assert _failed(load) == []


def test_errors(stage: Stage) -> None:
    """Green is proven, and fails on what clients send: it goes again by itself."""
    stage.gated.close("request", "raise RuntimeError('no luck')")
    with stage.load():
        Run(stage, *LOOSE[:4], "--steps", "10", "--step-seconds", "30", "--failed", "0.1").fails("requests failed")


def test_undecided(stage: Stage) -> None:
    """Nobody asks anything of green: nothing is shown, so it does not stay."""
    Run(stage, *LOOSE, "--bake", "0.1").fails("0 requests were answered, at least 1 are needed")


def test_killed(stage: Stage) -> None:
    """Green is killed while it takes all: HAProxy turns to blue at once, and only requests that were running in green fail."""
    with stage.load() as load:
        run = Run(stage, *LOOSE, "--bake", "60")
        run.wait_log("green gets all")
        os.kill(stage.green, SIGKILL)
        run.fails("was ended by SIGKILL")
    assert len(_failed(load)) <= CLIENTS


def test_killed_with_the_script(stage: Stage) -> None:
    """Green and the script are killed: HAProxy needs nobody to turn to blue."""
    with stage.load() as load:
        run = Run(stage, *LOOSE, "--bake", "60")
        run.wait_log("green gets all")
        run.process.kill()
        run.process.wait(PATIENCE)
        os.kill(stage.green, SIGKILL)
        stage.blue.wait(lambda: stage.api.traffic("green").status == "DOWN", "HAProxy's checks")
        stage.serves("blue")
    assert len(_failed(load)) <= CLIENTS


def _management(master: int) -> int:
    """The pid of the management process of a master."""
    (found,) = (each.pid for each in psutil.Process(master).children() if "warmfork: management" in " ".join(each.cmdline()))
    return found


def test_blue_is_down_as_well(stage: Stage) -> None:
    """Neither of the two answers HAProxy's checks: nobody is ended, and blue takes all once both answer again."""
    with stage.load(), ExitStack() as stopped:
        run = Run(stage, *LOOSE, "--bake", "60")
        run.wait_log("green gets all")
        for colour, master in (("blue", stage.blue.process.pid), ("green", stage.green)):
            pid = _management(master)
            os.kill(pid, signal.SIGSTOP)
            stopped.callback(os.kill, pid, signal.SIGCONT)
            if colour == "blue":
                stage.blue.wait(lambda: stage.api.traffic("blue").status == "DOWN", "HAProxy's checks of blue")
        run.ends(1, "blue is down: green is left until that is back\n")
        stopped.close()
        stage.blue.wait(lambda: {stage.api.traffic(name).status for name in COLOURS} == {"UP"}, "HAProxy's checks")
        stage.serves("blue")
    os.kill(stage.green, SIGKILL)
    stage.blue.wait(lambda: stage.api.traffic("green").status == "DOWN", "HAProxy's checks of green")


def test_stopped(stage: Stage) -> None:
    """TERM to the script in the middle: blue takes all again, green is ended, no request failed."""
    with stage.load() as load:
        run = Run(stage, *LOOSE[:6], "--step-seconds", "1", "--bake", "60")
        run.wait_log("green gets 50 %")
        run.process.send_signal(signal.SIGTERM)
        run.fails("asked to stop by SIGTERM")
    assert _failed(load) == []


def test_refused(stage: Stage) -> None:
    """Nothing is begun where something is in the way: no such backend, a second shift, a green that runs already."""
    Run(stage, "--backend", "nobody").ends(2, "refused: HAProxy has no backend 'nobody'")
    stage.gated.close("warming")
    first = Run(stage, *LOOSE)
    first.wait_log("green comes to")
    Run(stage, *LOOSE).ends(2, "refused: another shift is under way")
    first.process.send_signal(SIGTERM)
    first.ends(1, "asked to stop by SIGTERM; blue serves")
