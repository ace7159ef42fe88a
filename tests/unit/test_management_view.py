"""What the management process reads from the page: status, metrics, memory, which processes live."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import notice
from server.management import metrics, status
from server.management.memory import Memory, MemoryReader
from server.management.view import LOOKS, View
from server.notice import ModelNotice, Notice
from server.processes import alive
from server.scoreboard import BUCKETS, NEVER, TEXT, Scoreboard, pack
from server.states import Phase, Role, State

MODEL = ModelNotice(
    name="digits",
    version=3,
    index=1,
    platform="onnxruntime_onnx",
    rung="live",
    why="",
    batched=True,
    shapes=[{"batch": 1}, {"batch": 8, "length": 16}],
    private_bytes=4096,
    graphs=True,
    precision="bf16",
    difference=0.0078125,
    compile_seconds=12.5,
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until its input closes."""
    command = [sys.executable, "-Sc", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def view(child: subprocess.Popen[bytes]) -> View:
    """A served page: slot 0 active and alive, slot 2 empty with what its last worker counted."""
    board = Scoreboard.create(3)
    board.set("generation", 2)
    board.set("active", 1)
    board.enter(Phase.SERVING)
    board.header["names"][0][1] = b"digits/3"
    slot = board.slots[0]
    slot["word"], slot["pid"], slot["generation"], slot["device"] = pack(State.ACTIVE, NEVER), child.pid, 2, b"cpu"
    slot["phases"][State.WARMING] = 1.25
    slot["connections"], slot["waiting"], slot["gpu_bytes"] = 3, 2, 5
    for index, requests in ((0, 5), (2, 7)):
        each = board.slots[index]
        each["requests"], each["errors"], each["duration_sum"] = requests, 1, 0.5
        each["durations"][0], each["durations"][len(BUCKETS)] = requests - 1, 1
        model = each["models"][1]
        model["batches"], model["cold"], model["success"], model["success_ns"], model["infer_ns"] = 4, 1, requests, 2e9, 1e9
    slot["models"][1]["shapes"][0] = (20.0, 1.5)
    slot["models"][1]["shapes"][1] = (30.0, 0.0)
    notice.publish(board, Notice({2: [MODEL]}, reasons=["generation 3 was refused: no such file"]))
    return View(board, 1, os.getpid(), MemoryReader())


def test_status_has_what_the_contract_lists(view: View, child: subprocess.Popen[bytes]) -> None:
    """Every field by its name, as JSON; a slot that nobody holds is not listed."""
    found = msgspec.json.decode(msgspec.json.encode(status.report(view)))
    worker = found["workers"][0]
    held = worker.pop("memory")

    assert (found["generation"], found["phase"], found["ready"]) == (2, "serving", True)
    assert found["reasons"] == ["generation 3 was refused: no such file"]
    assert found["targets"] == {"active": 1, "standby": 0}
    assert [{**model, "index": 1} for model in found["models"]] == [{"generation": 2, **msgspec.to_builtins(MODEL)}]
    assert len(found["workers"]) == 1
    assert worker == {
        "slot": 0,
        "pid": child.pid,
        "generation": 2,
        "role": "active",
        "state": "active",
        "device": "cpu",
        "doing": "",
        "phases": {"warming": 1.25},
        "models": {
            "digits/3": {
                "batch=1": {"first_ms": 20.0, "steady_ms": 1.5},
                "batch=8,length=16": {"first_ms": 30.0, "steady_ms": None},
            }
        },
        "gpu_bytes": 5,
        "connections": 3,
        "waiting": 2,
        "requests": 5,
        "errors": 1,
        "batches": 4,
        "cold_dispatches": 1,
    }
    assert held["rss_bytes"] >= held["pss_bytes"] >= held["private_bytes"] > 0


def test_status_says_why_it_is_not_ready(view: View) -> None:
    """The verdict's reasons come first, then the master's."""
    view.board.enter(Phase.DRAINING)

    found = status.report(view)

    assert not found.ready
    assert found.reasons[0].startswith("the server is going away: draining for ")
    assert found.reasons[-1] == "generation 3 was refused: no such file"


def test_one_leaves_while_we_look(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a look at the page and one at its processes a worker may leave in whose place another came: that is no 503."""
    slots, asked = view.board.slots, []

    def alive(pid: int, _parent: int) -> bool:
        asked.append(pid)
        if len(asked) == 1:
            slots["word"][:2], slots["pid"][:2] = (pack(State.EMPTY, 0), pack(State.ACTIVE, NEVER)), (0, pid + 1)
        return len(asked) > 1

    monkeypatch.setattr("server.management.view.alive", alive)
    assert view.ready().ready
    assert 2 == len(asked)


def test_one_has_ended(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has ended, and is nobody's place yet, counts at once, also where the page never stands still."""
    slots, asked = view.board.slots, []
    monkeypatch.setattr("server.management.view.alive", lambda pid, _parent: asked.append(pid))
    assert not view.ready().ready
    assert 1 == len(asked)

    def alive(pid: int, _parent: int) -> bool:
        slots["pid"][1] += 1
        asked.append(pid)
        return False

    monkeypatch.setattr("server.management.view.alive", alive)
    assert not view.ready().ready
    assert 1 + LOOKS == len(asked)


def test_the_state_at_hand_grows(view: View) -> None:
    """A worker that boots shows the seconds of the state it is in, before it has written them down."""
    slot = view.board.slots[1]
    slot["word"], slot["role"] = pack(State.WARMING, NEVER), Role.STANDBY
    slot["forked_ns"] = time.monotonic_ns() - 5_000_000_000
    slot["phases"][State.LOADING] = 2.0

    worker = status.report(view).workers[1]

    assert worker.role == "standby"
    assert worker.phases["loading"] == 2.0
    assert worker.phases["warming"] == pytest.approx(3.0, abs=1.0)


def test_a_shape_without_free_axes_has_a_name() -> None:
    """No axis to name is no reason for an empty key."""
    assert status.shape_label({}) == "fixed"
    assert status.shape_label({"batch": 8, "length": 16}) == "batch=8,length=16"


def _documented(name: str) -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "observing.md").read_text(encoding="utf-8")
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0].splitlines()[2:]


def _fields(kind: type[msgspec.Struct], at: str = "") -> Iterator[str]:
    """The names of all that an answer may have; `*` stands for a name that is not ours."""
    for field in msgspec.structs.fields(kind):
        name, inner = at + field.name, field.type
        while get_origin(inner) in (list, dict):
            name += "[]" if get_origin(inner) is list else ".*"
            inner = get_args(inner)[-1]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from _fields(inner, f"{name}.")
        else:
            yield name


def test_every_metric_is_documented(view: View) -> None:
    """The table of docs/observing.md is the one that Prometheus gets: names, types, labels, meanings."""
    rows = []
    for family in text_string_to_metric_families(metrics.render(view).decode()):
        labels = dict.fromkeys(f"`{label}`" for sample in family.samples for label in sample.labels if label != "le")
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |")

    assert rows == _documented("metrics")


def test_every_field_is_documented() -> None:
    """The table of docs/observing.md has every field of `/status`, and no other."""
    named = [name for row in _documented("status") for name in re.findall(r"`([^`]+)`", row.split("|")[1])]

    assert sorted(_fields(status.Status)) == sorted(named)


def test_metrics_parse_and_count_every_slot(view: View) -> None:
    """The Prometheus parser reads them, and a slot that is empty now still counts."""
    families = {family.name: family for family in text_string_to_metric_families(metrics.render(view).decode())}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families.values() for sample in family.samples
    }
    model = (("model", "digits"), ("version", "3"))

    assert all(name.startswith("warmfork_") for name in families)
    assert samples["warmfork_requests_total",] == 12
    assert samples["warmfork_errors_total",] == 2
    assert samples["warmfork_batches_total", *model] == 8
    assert samples["warmfork_cold_dispatches_total", *model] == 2
    assert samples["warmfork_inferences_total", model[0], ("outcome", "success"), model[1]] == 12
    assert samples["warmfork_inference_seconds_total", model[0], ("outcome", "success"), model[1]] == 4
    assert samples["warmfork_inference_step_seconds_total", model[0], ("step", "infer"), model[1]] == 2
    assert samples["warmfork_request_duration_seconds_bucket", ("le", "0.001")] == 10
    assert samples["warmfork_request_duration_seconds_bucket", ("le", "+Inf")] == 12
    assert samples["warmfork_request_duration_seconds_count",] == 12
    assert samples["warmfork_request_duration_seconds_sum",] == 1
    assert samples["warmfork_worker_connections", ("slot", "0")] == 3
    assert samples["warmfork_worker_waiting_requests", ("slot", "0")] == 2
    assert samples["warmfork_workers", ("state", "active")] == 1
    assert samples["warmfork_workers", ("state", "failed")] == 0
    assert samples["warmfork_generation",] == 2
    assert samples["warmfork_ready",] == 1
    assert samples["warmfork_phase", ("phase", "serving")] == 1
    assert samples["warmfork_worker_memory_bytes", ("kind", "pss"), ("slot", "0")] > 0
    assert samples["warmfork_worker_memory_bytes", ("kind", "gpu"), ("slot", "0")] == 5


def test_a_notice_is_whole_while_it_is_written() -> None:
    """A reader never sees half a text, however often the master writes while it reads."""
    board = Scoreboard.create(1)
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            notice.publish(board, Notice(doing=str(count), reasons=[str(count) * (count % 500)]))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found: list[Notice] = []
        while len({each.doing for each in found}) < 20:
            found.append(notice.read(board))
    finally:
        stop.set()
        writer.join()

    assert all(each.reasons == [each.doing * (int(each.doing) % 500)] for each in found if each.doing)


def test_a_notice_that_was_never_finished_is_not_seen(view: View) -> None:
    """The master dies in the middle of writing: what it said before still stands."""
    before = view.notice()
    serial = view.board.get("notice") >> 32
    start = (serial + 1 & 1) * TEXT
    view.board.text[start : start + 9] = b'{"doing":'

    assert view.notice() == before


def test_alive_is_a_child_that_has_not_ended(child: subprocess.Popen[bytes]) -> None:
    """Someone else's child, a process that has ended but was not reaped, and an unused id are not alive."""
    assert alive(child.pid, os.getpid())
    assert not alive(child.pid, os.getppid())
    assert not alive(os.getpid(), os.getpid())
    assert not alive(0, os.getpid())

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not alive(child.pid, os.getpid())


def test_memory_is_looked_up_once_in_a_while(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is read, the kernel is asked once per interval; a new process at once; one that cannot be read is None."""
    looks: list[int] = []

    def look(pid: int) -> dict[str, int]:
        looks.append(pid)
        return {"Rss": 3, "Pss": 2, "Private_Dirty": 1} if pid == child.pid else {}

    monkeypatch.setattr("server.processes.memory", look)
    reader = MemoryReader(interval=60)

    for _ in range(100):
        assert reader.read([child.pid]) == {child.pid: Memory(3, 2, 1)}
    assert reader.read([child.pid, 2]) == {child.pid: Memory(3, 2, 1), 2: Memory()}
    assert looks == [child.pid, 2]


def test_memory_is_looked_up_again(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the interval a reader gets new numbers, without having waited for them."""
    count = iter(range(1, 1_000_000))
    monkeypatch.setattr("server.processes.memory", lambda _: {"Rss": next(count)})
    reader = MemoryReader(interval=0.01)
    end = time.monotonic() + 10

    first = reader.read([child.pid])[child.pid].rss_bytes
    while reader.read([child.pid])[child.pid].rss_bytes == first and time.monotonic() < end:
        threading.Event().wait(0.01)

    assert first == 1
    assert reader.read([child.pid])[child.pid].rss_bytes != first
