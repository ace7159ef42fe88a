"""The Prometheus metrics, read from the page. Totals run over all slots, also those that no worker holds now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from server.management.memory import Memory
from server.management.view import View
from server.readiness import Verdict, phase_seconds, text
from server.scoreboard import BUCKETS, Snapshot
from server.states import Phase, State

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Counters of a model: metric, what it counts, label beside model and version, and for each value of that label the field.
_COUNTS = (
    ("batches", "Runs of the engine", "", {"": "batches"}),
    ("rows", "Rows inferred, padding not counted", "", {"": "rows"}),
    ("cold_dispatches", "Batches run on a shape that had not been warmed", "", {"": "cold"}),
    ("inferences", "Inference requests, by how they ended", "outcome", {"success": "success", "failure": "fail"}),
)
_TIMES = (
    (
        "inference_seconds",
        "Time of inference requests, by how they ended",
        "outcome",
        {"success": "success_ns", "failure": "fail_ns"},
    ),
    (
        "inference_step_seconds",
        "Time of inference requests by step: in the queue, reading inputs, in the engine, writing outputs",
        "step",
        {"queue": "queue_ns", "input": "input_ns", "infer": "infer_ns", "output": "output_ns"},
    ),
)


def render(view: View) -> bytes:
    """Read the page once and write it as Prometheus text."""
    return generate_latest(_Reading(view, *view.judge(view.board.snapshot)))


@dataclass(frozen=True, slots=True)
class _Reading:
    """One reading of the page, as the client library wants it."""

    view: View
    snapshot: Snapshot
    verdict: Verdict

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._workers()
        yield from self._requests()
        yield from self._models()

    def _server(self) -> Iterator[Metric]:
        header = self.snapshot.header
        uptime = (self.snapshot.now_ms - int(header["started_ns"]) // 1_000_000) / 1000
        for name, meaning, value in (
            ("ready", "1 while requests are answered, as /readyz says", self.verdict.ready),
            ("generation", "The newest generation that has opened, 0 before the first", header["generation"]),
            ("building_generation", "The generation being made, 0 when none is", header["building"]),
            ("phase_seconds", "How long the server has been in its phase", phase_seconds(self.snapshot)),
            ("uptime_seconds", "How long the master has run", max(uptime, 0)),
        ):
            yield GaugeMetricFamily(f"warmfork_{name}", meaning, float(value))
        phases = GaugeMetricFamily("warmfork_phase", "1 for the phase that the server is in", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.name.lower()], float(header["phase"] == phase))
        yield phases

    def _workers(self) -> Iterator[Metric]:
        header, slots = self.snapshot.header, self.snapshot.slots
        states = [self.snapshot.state(index)[0] for index in range(len(slots))]
        counts = Counter(states)
        workers = GaugeMetricFamily("warmfork_workers", "Workers by state", labels=["state"])
        for state in State:
            if state is not State.EMPTY:
                workers.add_metric([state.name.lower()], counts[state])
        yield workers
        wanted = GaugeMetricFamily("warmfork_workers_wanted", "How many workers there should be", labels=["role"])
        for role in ("active", "standby"):
            wanted.add_metric([role], float(header[role]))
        yield wanted
        for field, name, meaning in (
            (
                "failures",
                "failed_boots",
                "Boots that failed one after another on one device, crashes just after opening included",
            ),
            ("connections", "connections", "Open connections"),
            ("waiting", "waiting_requests", "Requests that wait for a batch"),
        ):
            family = GaugeMetricFamily(f"warmfork_worker_{name}", meaning, labels=["slot"])
            for index in range(len(slots)):
                family.add_metric([str(index)], float(slots[field][index]))
            yield family
        pids = {index: int(slots["pid"][index]) for index, state in enumerate(states) if state is not State.EMPTY}
        yield self._memory({index: pid for index, pid in pids.items() if self.view.alive(pid)})

    def _memory(self, pids: dict[int, int]) -> Metric:
        held = self.view.memory.read(pids.values())
        family = GaugeMetricFamily("warmfork_worker_memory_bytes", "Memory of a worker", labels=["slot", "kind"])
        for index, pid in pids.items():
            for field in Memory.__struct_fields__:
                if (value := getattr(held[pid], field)) is not None:
                    family.add_metric([str(index), field.removesuffix("_bytes")], value)
            if gpu := int(self.snapshot.slots["gpu_bytes"][index]):
                family.add_metric([str(index), "gpu"], gpu)
        return family

    def _requests(self) -> Iterator[Metric]:
        slots = self.snapshot.slots
        yield CounterMetricFamily("warmfork_requests", "Requests answered by workers", float(slots["requests"].sum()))
        yield CounterMetricFamily("warmfork_errors", "Requests answered with an error", float(slots["errors"].sum()))
        bounds = [f"{bound:g}" for bound in BUCKETS] + ["+Inf"]
        counts = accumulate(int(count) for count in slots["durations"].sum(axis=0))
        yield HistogramMetricFamily(
            "warmfork_request_duration_seconds",
            "Time of requests in workers",
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=float(slots["duration_sum"].sum()),
        )

    def _models(self) -> Iterator[Metric]:
        names = [text(name) for name in self.snapshot.header["names"]]
        models = [(index, *name.rpartition("/")[::2]) for index, name in enumerate(names) if name]
        for table, unit in ((_COUNTS, 1), (_TIMES, 1e9)):
            for metric, meaning, label, fields in table:
                family = CounterMetricFamily(f"warmfork_{metric}", meaning, labels=["model", "version", *filter(None, [label])])
                for value, field in fields.items():
                    counters = self.snapshot.slots["models"][field]
                    for index, name, version in models:
                        family.add_metric([name, version, *filter(None, [value])], float(counters[:, index].sum()) / unit)
                yield family
