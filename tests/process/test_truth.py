"""What the server says of itself is so: probes, `ps`, the exit status, the log."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import identity, put
from tests.phases import HELD, PLAIN, SHAPES, Gated, server_in
from tests.repeat import Repeat
from tests.server import Server

Record = Any
BUSY = "end = {start} + {seconds}\nwhile time.time() < end: pass"
"""Takes a core and the interpreter's lock for so many seconds."""


def test_ready_not_before_it_is_true(tmp_path: Path) -> None:
    """Asked every 10 ms from the start on: never ready before every worker has every shape behind it, and then for good."""
    gated = Gated(tmp_path)
    for place in ("warming", "proving-1", "rehearsal-1"):
        gated.close(place, "time.sleep(0.1)")
    server = Server(tmp_path, workers=3, ready=False)
    first: list[dict[str, Any]] = []

    def look() -> int:
        status = server.probe("/readyz")[0]
        if status == 200 and not first:
            first.append(server.status())
        return status

    with server, Repeat(look, pause=0.01) as ready:
        server.wait(lambda: first, "readiness")
        server.wait_log("Generation 1 is open")
        states = [worker["state"] for worker in first[0]["workers"]]
        assert len(states) == 3
        assert "active" in states
        assert set(states) <= {"waiting", "active"}  # all are proven, and one is quicker
        for worker in first[0]["workers"]:
            shapes = worker["models"]["gated/1"]
            assert set(shapes) == set(SHAPES)
            assert all(times["first_ms"] >= 100 and times["steady_ms"] >= 100 for times in shapes.values())
        gated.open_all()
        assert [server.infer("gated", PLAIN)[0] for _ in range(5)] == [200] * 5
        assert sum(worker["cold_dispatches"] for worker in server.status()["workers"]) == 0
        statuses = [status for _, status, _ in ready.results if status]
    assert statuses.count(503) > 10
    assert statuses == sorted(statuses, reverse=True)


@contextmanager
def _probed(server: Server, record: Record) -> Iterator[None]:
    """Both probes are answered quickly all through what is inside."""
    server.wait(lambda: server.probe("/livez")[0] == 200, "the management process")
    with (
        Repeat(lambda: server.probe("/livez")[0], pause=0.01) as live,
        Repeat(lambda: server.probe("/startupz")[0], pause=0.01) as up,
    ):
        yield
    for name, repeat in (("livez", live), ("startupz", up)):
        seconds = [took for _, _, took in repeat.results]
        p95, worst = float(np.percentile(seconds, 95)), max(seconds)
        print(f"{name}: {len(seconds)} times, p95 {p95 * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms")  # noqa: T201
        record(f"{name}_p95_ms", round(p95 * 1e3, 1))
        record(f"{name}_worst_ms", round(worst * 1e3, 1))
        assert p95 <= 0.1
        assert worst <= 1
        assert {status for _, status, _ in repeat.results} <= {200, 503}
    assert {status for _, status, _ in live.results} == {200}


def test_probes_during_a_load(tmp_path: Path, record_property: Record) -> None:
    """While the master is busy with a load of 10 seconds, which never lets go, probes are answered within 100 ms."""
    gated = Gated(tmp_path)
    gated.close("load", BUSY.format(start="time.time()", seconds=10))
    with Server(tmp_path, ready=False) as server, _probed(server, record_property):
        server.wait(lambda: gated.came("load"), "the load")
        assert server.probe("/startupz")[0] == 503
        server.wait_ready()


def test_probes_while_all_are_busy(tmp_path: Path, record_property: Record) -> None:
    """While every worker is in an inference of 5 seconds, probes are answered within 100 ms."""
    with server_in("serving", tmp_path) as scene, _probed(scene.server, record_property):
        scene.gated.close("request", BUSY.format(start="gate.stat().st_mtime", seconds=5))
        asked = [scene.pool.submit(scene.server.infer, "gated", HELD, 60) for _ in range(4)]
        scene.server.wait(lambda: len(set(scene.gated.came("request"))) == 2, "every worker to be busy")
        assert [each.result()[0] for each in asked] == [200] * 4
        assert scene.server.probe("/readyz")[0] == 200


@pytest.mark.parametrize("kind", [None, "gthread", "sync"])
def test_process_picture(kind: str | None, tmp_path: Path) -> None:
    """`ps` shows what ARCHITECTURE.md draws; gunicorn's own workers serve the same app, as warm, and end as cleanly."""
    arguments = ["-k", kind] if kind else []
    with server_in("serving", tmp_path, *arguments, standby=1) as scene:
        server = scene.server
        server.wait_state("standby")
        assert sorted(server.processes().values()) == [
            "warmfork: management",
            "warmfork: master",
            "warmfork: worker 0 · active · gen 1 · cpu",
            "warmfork: worker 1 · active · gen 1 · cpu",
            "warmfork: worker 2 · standby · gen 1 · cpu",
        ]
        assert [scene.ask() for _ in range(20)] == [200] * 20
        workers = server.status()["workers"]
        assert all(set(worker["models"]["gated/1"]) == set(SHAPES) for worker in workers)
        assert sum(worker["requests"] for worker in workers) == 20
        assert sum(worker["cold_dispatches"] for worker in workers) == 0


REFUSED: dict[str, tuple[int, dict[str, Any], str]] = {
    "unknown": (78, {"worker": 2}, r"WARMFORK_WORKER=2: no such setting; the nearest is WARMFORK_WORKERS"),
    "range": (78, {"boot_timeout": 0}, r"WARMFORK_BOOT_TIMEOUT=0: must be a number from 0.1 to 86400"),
    "contradiction": (78, {"workers": 3, "max_workers": 2}, r"WARMFORK_WORKERS=3: must be at most WARMFORK_MAX_WORKERS=2"),
    "device": (75, {"device": "cuda:999"}, r"WARMFORK_DEVICE=cuda:999: no such GPU.*"),
    "memory": (75, {"workers": 512, "memory_headroom": 0.95}, r"no memory for 512 workers: .*WARMFORK_MEMORY_HEADROOM=0\.95"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """A wrong setting, or one that this machine cannot give, ends the start: the status of the contract and one line."""
    status, settings, line = REFUSED[case]
    put(tmp_path, "same", identity())
    _refused(Server(tmp_path, ready=False, **settings), status, line)


@pytest.mark.parametrize("which", ["bind", "management_bind"])
def test_address_in_use(which: str, tmp_path: Path) -> None:
    """An address that somebody else listens on is named."""
    put(tmp_path, "same", identity())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = rf"WARMFORK_{which.upper()}={address}: Address already in use"
        _refused(Server(tmp_path, ready=False, **{which: address}), 78, line)


def _refused(server: Server, status: int, line: str) -> None:
    server.expect(line)
    with server:
        server.clean(status)
    assert len([said for said in server.lines if "INFO" not in said]) == 1
    assert re.search(line, server.log)


def test_json_log(tmp_path: Path) -> None:
    """With WARMFORK_LOG=json every line is a JSON object, also those about a model that fails."""
    with server_in("serving", tmp_path, log="json") as scene:
        scene.server.expect("model gated/1 failed on a request")
        scene.gated.close("request", "raise RuntimeError('no luck')")
        assert scene.server.infer("gated", HELD)[0] == 500
    lines = [json.loads(line) for line in scene.server.lines]
    assert all({"time", "pid", "level", "message"} <= line.keys() for line in lines)
    assert [line["level"] for line in lines].count("ERROR") == 1
