"""A reload where memory will not hold two generations: one worker at a time takes over, or none, and nobody notices."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from signal import SIGHUP

import psutil
import pytest

from server.master.capacity import WORKER_BYTES
from tests.phases import Scene, server_in
from tests.repeat import Repeat
from tests.server import ROOT

TIGHT = ROOT / "tests" / "tight_conf.py"


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how much memory there is."""
    file = tmp_path / "limit"
    monkeypatch.setenv("LIMIT", str(file))
    (tmp_path / "models").mkdir()
    return file


def _room_for(scene: Scene, workers: float, limit: Path) -> None:
    """Leave memory for so many workers beside all that the server holds."""
    held = sum(psutil.Process(pid).memory_full_info().pss for pid in scene.server.processes())
    (model,) = scene.server.status()["models"]
    limit.write_text(str(int(held + workers * (WORKER_BYTES + model["private_bytes"]))), encoding="ascii")


def _generations(scene: Scene) -> list[int]:
    return [worker["generation"] for worker in scene.server.status()["workers"]]


def test_one_by_one(limit: Path, tmp_path: Path) -> None:
    """Each of three old workers goes for a new one, with never more than one more; a failure on the way takes all of it back."""
    with (
        server_in("serving", tmp_path / "models", "-c", str(TIGHT), workers=3, memory_headroom=0) as scene,
        Repeat(scene.ask, 2) as asking,
        Repeat(lambda: scene.server.probe("/readyz")[0], pause=0.005) as ready,
        Repeat(lambda: len(_generations(scene)), pause=0.01) as counts,
    ):
        server, gated = scene.server, scene.gated
        _room_for(scene, 2, limit)  # one, and what is written to by the requests that go on
        server.reload()
        server.wait_log("No memory for 3 workers beside those that serve, so one at a time takes over: a worker takes")
        assert _generations(scene) == [2, 2, 2]

        server.expect("generation 3 was refused", "no luck", "exited with code")
        gated.close("warming")
        _room_for(scene, 2, limit)
        server.send(SIGHUP)
        (first,) = server.wait_state("warming")
        for slot in {0, 1, 2, 3} - {first["slot"]}:
            gated.close(f"warming-{slot}", "raise RuntimeError('no luck')")
        gated.open("warming")
        server.wait_log(r"generation 3 was refused: .*no luck")
        assert 3 in _generations(scene)
        for slot in {0, 1, 2, 3} - {first["slot"]}:
            gated.open(f"warming-{slot}")
        server.wait(lambda: _generations(scene) == [2, 2, 2] and len(server.wait_state("active")) == 3, "generation 2 again")
        assert re.search("generation 3 was refused: .*no luck", " ".join(server.status()["reasons"]))
        assert server.status()["generation"] == 2
    assert {result for _, result, _ in asking.results} == {200}
    assert {result for _, result, _ in ready.results} == {200}
    assert max(Counter(result for _, result, _ in counts.results)) == 4


def test_no_room(limit: Path, tmp_path: Path) -> None:
    """Where there is no memory for one worker more, the reload is refused with the sums, and the same workers serve on."""
    with server_in("serving", tmp_path / "models", "-c", str(TIGHT), memory_headroom=0) as scene:
        _room_for(scene, 0.5, limit)
        scene.server.reload(r"no memory for a worker beside those that serve: a worker takes \d+ MiB, \d+ MiB are left")
