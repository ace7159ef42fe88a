"""A worker that joins others that serve the same: warm and proven in every shape, in few runs."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from signal import SIGKILL, SIGTTIN

from tests.models import identity, put
from tests.server import Server

_COUNTS = """
import os, time
from setproctitle import getproctitle

def preprocess(inputs):
    if getproctitle().startswith("warmfork: worker"):
        with open({log!r}, "a") as log:
            log.write(f"{{os.getpid()}} {{len(inputs['x'])}}\\n")
    time.sleep(0.05)
    return inputs
"""


def test_few_runs(tmp_path: Path) -> None:
    """One that is added and one that replaces a dead one run each shape alone and over HTTP, and half as often as a first."""
    log = tmp_path / "log"
    put(tmp_path / "models", "m", identity(), "batch_sizes = [1, 2, 4]\n", _COUNTS.format(log=str(log)))

    def runs(pid: int) -> Counter[int]:
        lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
        return Counter(int(rows) for who, rows in lines if int(who) == pid)

    with Server(tmp_path / "models", max_workers=2) as server:
        server.expect("was sent SIGKILL", "killed by SIGKILL")
        (first,) = server.wait_state("active")
        server.send(SIGTTIN)
        added = next(each for each in server.wait_state("active", 2) if each["pid"] != first["pid"])
        os.kill(first["pid"], SIGKILL)
        known = {first["pid"], added["pid"]}
        server.wait(lambda: {each["pid"] for each in server.wait_state("active", 2)} - known, "who replaces it")
        replacing = next(each for each in server.wait_state("active", 2) if each["pid"] not in known)
        for worker in (added, replacing):
            assert set(runs(worker["pid"])) == {1, 2, 4}
            assert min(runs(worker["pid"]).values()) >= 2
            assert runs(worker["pid"]).total() < runs(first["pid"]).total() / 2
            assert set(worker["models"]["m/1"]) == {"batch=1", "batch=2", "batch=4"}
            assert all(each["steady_ms"] > 0 for each in worker["models"]["m/1"].values())
