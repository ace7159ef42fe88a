"""The life of a server: it starts, serves, loses a worker, reloads, and stops, clean each time."""

from __future__ import annotations

from pathlib import Path

from tests.models import identity, put
from tests.server import Server


def test_serves_and_stops(tmp_path: Path) -> None:
    """A server with one model becomes ready, answers, and leaves nothing behind."""
    put(tmp_path, "same", identity())

    with Server(tmp_path, workers=2) as server:
        assert server.infer("same", {"x": ("FP32", [[1, 2, 3]])})[1]["outputs"][0]["data"] == [1, 2, 3]
        assert sorted(title.split(" · ")[0] for title in server.processes().values()) == [
            "warmfork: management",
            "warmfork: master",
            "warmfork: worker 0",
            "warmfork: worker 1",
        ]
