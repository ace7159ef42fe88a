"""Models that load well, and fail when they are run: in the trial's forks, in a worker's warmup, in its proof, at a reload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.models import BATCHED, dense, failing, identity, nan, put, row_mixer
from tests.server import Server

BOOT_TIMEOUT = 3
HANG = r"hung for more than 3 s"
WHERE = "model m/1, shape batch=1"
WORKER = r"worker \d+ \(warming\)"
STACK = r'(?s)most recent call first\):\n.*File "[^"]*/model\.py", line \d+ in '
AGAIN = r"killed by SIGKILL at .*; try \d of 3"
FAULTS = {
    "hang": ("worker", "time.sleep(3600)", 70, rf"{WORKER}: {HANG} at {WHERE} \(WARMFORK_BOOT_TIMEOUT\)"),
    "native-hang": ("worker", "deadlock()", 70, rf"{WORKER}: {HANG} at {WHERE} \(WARMFORK_BOOT_TIMEOUT\)"),
    "raises": ("worker", "raise RuntimeError('boom')", 70, f"{WHERE}: raised RuntimeError: boom"),
    "crashes": ("worker", "os.kill(os.getpid(), 11)", 70, f"{WORKER}: killed by SIGSEGV at {WHERE}"),
    "killed": ("worker", "os.kill(os.getpid(), 9)", 75, f"{WORKER}: killed by SIGKILL at {WHERE}(?!; try)"),
    "sys-exits": ("worker", "sys.exit(0)", 70, f"{WHERE}: raised SystemExit: 0"),
    "exits": ("worker", "os._exit(0)", 70, f"{WORKER}: ended with status 0 at {WHERE}"),
    "no-memory": ("worker", "raise MemoryError", 75, rf"worker \d+: memory ran out at {WHERE}"),
    "hang-in-fork": ("fork", "time.sleep(3600)", 70, f"trial of the fork: {HANG} at {WHERE}"),
    "crash-in-fork": ("fork", "os.kill(os.getpid(), 11)", 70, f"trial of the fork: the child was killed by SIGSEGV at {WHERE}"),
    "killed-in-fork": ("fork", "os.kill(os.getpid(), 9)", 75, f"trial of the fork: the child was killed by SIGKILL at {WHERE}"),
    "raises-in-trial": ("live private", "raise RuntimeError('boom')", 70, f"{WHERE}: raised RuntimeError: boom"),
    "no-memory-in-trial": (
        "live private",
        "raise MemoryError",
        75,
        f".*m/1.*memory ran out.*{WHERE}|.*memory ran out at {WHERE}",
    ),
}
"""Name: where the fault is, the fault, the exit status of a first start, the one line in the log."""

faults = pytest.mark.parametrize(("stage", "fault", "status", "line"), FAULTS.values(), ids=FAULTS)


@faults
def test_first_start_ends(tmp_path: Path, stage: str, fault: str, status: int, line: str) -> None:
    """A first start ends with the contract's status and one line that names model and shape; a hang in a worker shows stacks."""
    put(tmp_path, "m", identity(), python=failing(stage, fault))
    server = Server(tmp_path, boot_timeout=BOOT_TIMEOUT)

    server.ends(status, line, AGAIN)

    if "hung" in line:
        server.wait_log(STACK)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one good model, which goes through every fault in turn, each as a version of its own."""
    models = tmp_path_factory.mktemp("models")
    put(models, "m", identity(), python=failing("", "pass"))
    with Server(models, workers=2, boot_timeout=BOOT_TIMEOUT) as server:
        server.expect(AGAIN)
        yield server


@faults
def test_reload_is_refused(served: Server, stage: str, fault: str, status: int, line: str) -> None:
    """A new version with the same fault is refused for the same reason, the old one serves on, and a good version opens."""
    newest = max(int(folder.name) for folder in (served.models / "m").iterdir() if folder.is_dir())
    put(served.models, "m", identity(), python=failing(stage, fault), version=newest + 1)

    served.reload(refused=line.replace("m/1", f"m/{newest + 1}"))

    assert served.process.poll() is None, f"ended, its first start would have with {status}"
    assert served.infer("m", {"x": ("FP32", [[1, 2, 3]])})[1]["model_version"] == str(newest)
    put(served.models, "m", identity(), python=failing("", "pass"), version=newest + 2)
    served.reload()
    assert served.infer("m", {"x": ("FP32", [[1, 2, 3]])})[1]["model_version"] == str(newest + 2)


GOLDEN = 'golden = ["sample.json"]\n'
POST = "import numpy as np\ndef postprocess(outputs, inputs):\n    y = outputs['y']\n    return %s\n"
CHECKS = {
    "nan": (nan(), "", BATCHED, f"{WHERE}: output 'y' has a NaN"),
    "golden": (
        identity(),
        "",
        BATCHED + GOLDEN,
        r"model m/1: golden sample sample\.json: output 'y' at \[0, 2\] must be 2\.0, is 1\.0",
    ),
    "shape": (identity(), POST % "{'y': y[:, :2]}", BATCHED, rf"{WHERE}: output 'y' must have shape \[-1, 3\], has \[1, 2\]"),
    "rows": (identity(), POST % "{'y': y.repeat(2, axis=0)}", BATCHED, rf"{WHERE}: output 'y' .*\[2, 3\]"),
    "dtype": (identity(), POST % "{'y': y.astype(np.float64)}", BATCHED, f"{WHERE}: .*postprocess must give 'y' as FP32"),
    "output": (identity(), POST % "{'z': y}", BATCHED, f"{WHERE}: .*postprocess must give 'y' as FP32"),
    "p95": (dense(), "", BATCHED + "p95_ms = 0.000001\n", r"model m/1: p95 of \d+ requests .* its p95_ms is 1e-06"),
}
"""Name of the check: model, `model.py`, `model.toml`, the one line in the log."""


@pytest.mark.parametrize(("model", "python", "toml", "line"), CHECKS.values(), ids=CHECKS)
def test_wrong_answers_are_never_ready(tmp_path: Path, model: onnx.ModelProto, python: str, toml: str, line: str) -> None:
    """A model that answers wrongly, or too slowly for its own bound, ends a first start with 70, and the line names the check."""
    folder = put(tmp_path, "m", model, toml, python)
    rows = np.ones((1, 3)).tolist()
    (folder / "sample.json").write_text(json.dumps({"inputs": {"x": rows}, "outputs": {"y": [[1, 1, 2]]}}), encoding="utf-8")

    Server(tmp_path).ends(70, line)


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    """A model whose rows mix is served all the same: exact batch sizes answer, others are refused by the limit's name."""
    put(tmp_path, "m", row_mixer())

    with Server(tmp_path) as server:
        (model,) = server.status()["models"]
        assert not model["batched"]
        assert server.infer("m", {"x": ("FP32", [[1, 2, 3], [3, 2, 1]])})[1]["outputs"][0]["data"] == [-1, 0, 1, 1, 0, -1]
        status, body = server.infer("m", {"x": ("FP32", [[1, 2, 3]] * 3)})
        assert (400, "axis 'batch' must be one of 1, 2, 4, 8, got 3") == (status, body["error"])


@pytest.mark.parametrize("fault", ["time.sleep(3600)", "deadlock()", "os.kill(os.getpid(), 11)"])
def test_session_that_does_not_survive_a_fork_goes_down_the_ladder(tmp_path: Path, fault: str) -> None:
    """Where the live session does not survive a fork each worker loads its own, and /status says which rung it is and why."""
    put(tmp_path, "m", identity(), python=failing("live", fault))

    with Server(tmp_path, workers=2, boot_timeout=BOOT_TIMEOUT) as server:
        (model,) = server.status()["models"]
        assert model["rung"] == "private"
        assert "live: model m/1 after a fork: " in model["why"]
        assert ("SIGSEGV" if "11" in fault else "hung for more than") in model["why"]
        assert server.infer("m", {"x": ("FP32", [[1, 2, 3]])})[0] == 200


def test_threads_take_the_live_rung_away(tmp_path: Path) -> None:
    """With two threads a worker the session cannot be the master's: /status says so, and every worker serves its own."""
    put(tmp_path, "m", dense())

    with Server(tmp_path, workers=2, threads=2) as server:
        (model,) = server.status()["models"]
        assert model["rung"] == "private"
        assert "WARMFORK_THREADS=2" in model["why"]
        assert server.infer("m", {"x": ("FP32", [[0.5] * 64])})[0] == 200
