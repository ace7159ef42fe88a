"""TERM, INT and QUIT in every phase, to the master and to its whole process group; the drain; a second TERM."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, Signals

import pytest

from tests.phases import OPEN, PHASES, PLAIN, server_in
from tests.repeat import Repeat

QUICK = 10.0
"""Seconds within which an end is quick: far less than WARMFORK_REQUEST_TIMEOUT, which a graceful stop waits at most."""
DEAF = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
(FOLDER / "until").write_text(str(time.monotonic() + 3))
time.sleep(3)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
"""
"""A TERM is not heard, as in a native call, for longer than a worker waits that takes it for its own; until when, in a file."""
GROUP = [pytest.param(False, id="master"), pytest.param(True, id="group")]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("number", "group"),
    [(SIGTERM, False), (SIGINT, False), (SIGQUIT, False), (SIGTERM, True), (SIGINT, True)],
    ids=["TERM", "INT", "QUIT", "group-TERM", "group-INT"],
)
def test_ends(phase: str, number: Signals, group: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Status 0 in every phase, not ready from the first moment on, what was accepted answered on TERM, quick otherwise."""
    with server_in(phase, tmp_path) as scene, Repeat(lambda: scene.server.probe("/readyz")[0]) as ready:
        server = scene.server
        sent = time.monotonic()
        server.send(number, group=group)
        if phase == "request" and number is SIGTERM:
            server.wait(lambda: server.probe("/readyz")[0] == 503, "readiness to be false")
            assert server.status()["phase"] == "stopping"
            scene.gated.open_all()
            assert scene.held[0].result()[0] == 200
        server.clean(0)

        assert time.monotonic() - sent < QUICK
        assert phase in OPEN or all(status != 200 for _, status, _ in ready.results)
        assert phase != "request" or number is SIGTERM or isinstance(scene.held[0].exception(), OSError)
    _once_false_always_false([status for _, status, _ in ready.results])


@pytest.mark.parametrize("group", GROUP)
@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGQUIT])
def test_second_signal_hurries(group: bool, number: Signals, tmp_path: Path) -> None:  # noqa: FBT001
    """TERM waits for the request in flight; a second one, or INT or QUIT, does not."""
    with server_in("request", tmp_path) as scene:
        server = scene.server
        server.send(SIGTERM, group=group)
        server.wait(lambda: server.probe("/readyz")[0] == 503, "readiness to be false")
        sent = time.monotonic()
        server.send(number, group=group)
        server.clean(0)

        assert time.monotonic() - sent < QUICK
        assert isinstance(scene.held[0].exception(), OSError)


@pytest.mark.parametrize("group", GROUP)
def test_drain(group: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """In the drain readiness is false with its reason, while old and new connections are served; then the server ends."""
    with server_in("serving", tmp_path, drain=2) as scene:
        server = scene.server
        kept = http.client.HTTPConnection(server.host, server.port, timeout=30)
        assert _ask(kept) == 200
        sent = time.monotonic()
        server.send(SIGTERM, group=group)
        server.wait(lambda: server.probe("/readyz")[0] == 503, "readiness to be false")

        reasons = server.probe("/readyz")[1]["reasons"]
        assert any("draining" in reason for reason in reasons)
        with Repeat(lambda: (_ask(kept), scene.ask(), server.probe("/livez")[0])) as asking:
            server.clean(0)
        assert 2 <= time.monotonic() - sent < 2 + QUICK
        served = [result for began, result, took in asking.results if began + took < sent + 2]
        assert len(served) > 1
        assert {*served} == {(200, 200, 200)}
        kept.close()


def test_group_in_a_load_that_hears_nothing(tmp_path: Path) -> None:
    """TERM to the group while the master is in a load and hears nothing: the workers hear it at once, and serve until it does."""
    with server_in("serving", tmp_path) as scene, Repeat(scene.ask, 2) as asking:
        server, gated = scene.server, scene.gated
        gated.renew()
        gated.close("load", DEAF)
        server.send(SIGHUP)
        server.wait((gated.folder / "until").exists, "the load")
        server.send(SIGTERM, group=True)
        server.clean(0)
        until = float((gated.folder / "until").read_text(encoding="utf-8"))
    # One that had begun before, and comes after the door was closed, is refused rightly.
    assert {result for began, result, took in asking.results if began + took < until} == {200}


@pytest.mark.parametrize("group", GROUP)
@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGQUIT])
def test_second_signal_ends_the_drain(group: bool, number: Signals, tmp_path: Path) -> None:  # noqa: FBT001
    """A drain of 30 seconds ends at once when somebody says so again."""
    with server_in("draining", tmp_path) as scene:
        sent = time.monotonic()
        scene.server.send(number, group=group)
        scene.server.clean(0)
        assert time.monotonic() - sent < QUICK


def test_drain_answers_what_it_accepted(tmp_path: Path) -> None:
    """A request that is in flight when the drain ends is answered all the same."""
    with server_in("request", tmp_path, drain=1) as scene:
        server = scene.server
        server.send(SIGTERM)
        server.wait(lambda: server.status()["phase"] == "stopping", "the end of the drain")
        scene.gated.open_all()
        assert scene.held[0].result()[0] == 200
        server.clean(0)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGQUIT])
def test_second_signal_hurries_after_a_drain(number: Signals, tmp_path: Path) -> None:
    """The stop that follows a drain waits for the request in flight too, until somebody says so again."""
    with server_in("request", tmp_path, drain=1) as scene:
        server = scene.server
        server.send(SIGTERM)
        server.wait(lambda: server.status()["phase"] == "stopping", "the end of the drain")
        sent = time.monotonic()
        server.send(number)
        server.clean(0)
        assert time.monotonic() - sent < QUICK


def _ask(connection: http.client.HTTPConnection) -> int:
    kind, data = PLAIN["x"]
    tensor = {"name": "x", "datatype": kind, "shape": [1, 3], "data": data}
    connection.request("POST", "/v2/models/gated/infer", json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    response.read()
    return response.status


def _once_false_always_false(statuses: list[int]) -> None:
    """Nobody who has been told to stay away is told otherwise."""
    seen = [status for status in statuses if status]
    end = len(seen) - seen[::-1].index(200) if 200 in seen else 0
    start = seen.index(200) if 200 in seen else 0
    assert set(seen[start:end]) <= {200}
