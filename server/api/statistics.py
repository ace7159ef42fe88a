"""The statistics extension: what all workers have counted, read from the scoreboard and summed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import falcon
import msgspec

from server.models.model import Model
from server.scoreboard import Records, Scoreboard
from server.serving import Served

Duration = dict[str, int]


class Statistics:
    """`/v2/models/stats` and `…/stats` of a model."""

    def __init__(self, served: Served) -> None:
        """Answer for what `served` gives at each request."""
        self._served = served

    def on_get_all(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer for every model."""
        models = self._served().models
        self._answer(resp, (models[name][version] for name in sorted(models) for version in sorted(models[name])))

    def on_get_model(self, _req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None) -> None:
        """Answer for the version named, or for every version if none is."""
        model = self._served().find(name, version)
        versions = self._served().models[name]
        self._answer(resp, [model] if version else (versions[number] for number in sorted(versions)))

    on_head_all = on_get_all
    on_head_model = on_get_model

    def _answer(self, resp: falcon.Response, models: Iterable[Model]) -> None:
        board = self._served().board
        resp.data = msgspec.json.encode({"model_stats": [_statistics(board, model) for model in models]})


def _statistics(board: Scoreboard, model: Model) -> dict[str, object]:
    index = board.model_index(model.key)
    rows = board.slots["models"][:, index] if index is not None else board.slots["models"][:0, 0]
    total = {name: int(rows[name].sum()) for name in rows.dtype.names or () if rows[name].ndim == 1}
    success = total["success"]
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": int(rows["last_ms"].max(initial=0)),
        "inference_count": total["rows"],
        "execution_count": total["batches"],
        "inference_stats": {
            "success": _duration(success, total["success_ns"]),
            "fail": _duration(total["fail"], total["fail_ns"]),
            "queue": _duration(success, total["queue_ns"]),
            "compute_input": _duration(success, total["input_ns"]),
            "compute_infer": _duration(success, total["infer_ns"]),
            "compute_output": _duration(success, total["output_ns"]),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": _batches(rows["sizes"]),
        "memory_usage": [],
    }


def _batches(sizes: Records) -> list[dict[str, object]]:
    """One entry per batch size. Decoding and encoding are counted per request, so per batch there is only the run."""
    counts: Counter[int] = Counter()
    times: Counter[int] = Counter()
    for size, count, ns in sizes[sizes["count"] > 0].tolist():
        counts[size] += count
        times[size] += ns
    nothing = _duration(0, 0)
    return [
        {
            "batch_size": size,
            "compute_input": nothing,
            "compute_infer": _duration(counts[size], times[size]),
            "compute_output": nothing,
        }
        for size in sorted(counts)
    ]


def _duration(count: int, ns: int) -> Duration:
    return {"count": count, "ns": ns}
