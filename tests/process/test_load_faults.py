"""Models whose Python misbehaves while it is loaded: in the trial, in the master, at the first start and at a reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL

import pytest

from tests.models import failing, identity, put
from tests.server import Server

BOOT_TIMEOUT = 3
STACK = r'(?s)most recent call first\):\n.*File "[^"]*/model\.py", line \d+ in '
"""Every thread's stack was written, and shows the model's Python."""

HANG = r"hung for more than 3 s"
FAULTS = {
    "hang-in-trial": ("trial", "time.sleep(3600)", 70, f"trial: {HANG} at model m/1: importing its Python"),
    "native-hang-in-trial": ("trial", "deadlock()", 70, f"trial: {HANG} at model m/1: importing its Python"),
    "hang-in-master": ("master", "time.sleep(3600)", 70, f"model m/1: {HANG} while the master loaded it"),
    "raises": ("trial", "raise RuntimeError('boom')", 78, r"\S*/m/1/model\.py: RuntimeError: boom"),
    "raises-in-master": ("master", "raise RuntimeError('boom')", 78, r"\S*/m/1/model\.py: RuntimeError: boom"),
    "no-memory": ("trial", "raise MemoryError", 75, r".*m/1.*memory ran out|.*memory ran out.*m/1"),
    "no-memory-in-master": ("master", "raise MemoryError", 75, r".*m/1.*memory ran out|.*memory ran out.*m/1"),
    "exits": ("trial", "os._exit(0)", 70, "trial: the child ended itself with status 0 at model m/1"),
    "sys-exits-in-master": ("master", "sys.exit(0)", 78, r"\S*/m/1/model\.py: SystemExit: 0"),
    "killed": ("trial", "os.kill(os.getpid(), 9)", 75, "trial: the child was killed by SIGKILL at model m/1: importing"),
    "crashes": ("trial", "os.kill(os.getpid(), 11)", 70, "trial: the child was killed by SIGSEGV at model m/1: importing"),
    "thread": (
        "trial",
        "threading.Thread(target=time.sleep, args=(3600,), name='stray').start()",
        70,
        r"model m/1: importing \S*/model\.py left 1 thread .*Python thread 'stray'",
    ),
    "native-thread": ("trial", "native_thread()", 70, r"model m/1: importing \S*/model\.py left 1 thread .*native thread"),
    "native-thread-in-master": (
        "master",
        "native_thread()",
        70,
        r"model m/1: loading in the master left 1 thread .*native thread",
    ),
}
"""Name: where the fault is, the fault, the exit status of a first start, the one line in the log."""

CRASHED = {"deadlock()": 1, "os.kill(os.getpid(), 11)": -11}
"""Faults that end the master itself, after a trial that went well: documented limits, with the exit status each has."""

faults = pytest.mark.parametrize(("stage", "fault", "status", "line"), FAULTS.values(), ids=FAULTS)


@faults
def test_first_start_ends(tmp_path: Path, stage: str, fault: str, status: int, line: str) -> None:
    """A first start ends with the exit status of the contract and one line that names the model; a hang shows its stacks."""
    put(tmp_path, "m", identity(), python=failing(stage, fault))
    server = Server(tmp_path, boot_timeout=BOOT_TIMEOUT)

    server.ends(status, line)

    if "hung" in line:
        server.wait_log(STACK)


@pytest.mark.parametrize("fault", CRASHED)
def test_master_is_ended_by_a_native_fault(tmp_path: Path, fault: str) -> None:
    """A native fault in the master that no trial has met ends the server at once or at a deadline, with stacks and no orphan."""
    put(tmp_path, "m", identity(), python=failing("master", fault))
    server = Server(tmp_path, boot_timeout=2)

    server.start().clean(CRASHED[fault])

    if fault == "deadlock()":
        server.wait_log(STACK)


def test_master_stands_still_in_a_reload(tmp_path: Path) -> None:
    """A reload in which the master's load never comes back: its stacks stand in the log, and the workers serve on without it."""
    put(tmp_path, "m", identity(), python=failing("", "pass"))
    with Server(tmp_path, boot_timeout=BOOT_TIMEOUT) as server:
        (tmp_path / "m" / "1" / "model.py").write_text(failing("master", "deadlock()"), encoding="utf-8")
        server.send(SIGHUP)
        server.wait_log(STACK)
        assert server.infer("m", {"x": ("FP32", [[1.0, 2.0, 3.0]])})[0] == 200
        server.send(SIGKILL)
        server.clean(-SIGKILL)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one good model, which goes through every fault in turn."""
    models = tmp_path_factory.mktemp("models")
    put(models, "m", identity(), python=failing("", "pass"))
    with Server(models, workers=2, boot_timeout=BOOT_TIMEOUT) as server:
        yield server


@pytest.mark.parametrize(("stage", "fault", "status", "line"), list(FAULTS.values())[:-1], ids=list(FAULTS)[:-1])
def test_reload_is_refused(served: Server, stage: str, fault: str, status: int, line: str) -> None:
    """A later generation with the same fault is refused for the same reason, the old one serves on, and a mended one opens."""
    python = served.models / "m" / "1" / "model.py"
    python.write_text(failing(stage, fault), encoding="utf-8")

    served.reload(refused=line)

    assert served.process.poll() is None, f"ended, its first start would have with {status}"
    assert served.infer("m", {"x": ("FP32", [[1, 2, 3]])})[0] == 200
    python.write_text(failing("", "pass"), encoding="utf-8")
    served.reload()


def test_thread_in_the_master_refuses_every_reload(tmp_path: Path) -> None:
    """A native thread that a reload left in the master cannot be ended: what serves goes on, each reload says why it cannot."""
    *_, line = FAULTS["native-thread-in-master"]
    put(tmp_path, "m", identity(), python=failing("", "pass"))

    with Server(tmp_path) as server:
        (tmp_path / "m" / "1" / "model.py").write_text(failing("master", "native_thread()"), encoding="utf-8")
        server.reload(refused=line)
        (tmp_path / "m" / "1" / "model.py").write_text(failing("", "pass"), encoding="utf-8")
        server.reload(refused=r"model m/1: .* left 1 thread .*native thread")
        assert server.infer("m", {"x": ("FP32", [[1, 2, 3]])})[0] == 200


EXIT_HANGS = "__import__('atexit').register(time.sleep, 3600); Hang.here = Hang()\n"
DESTRUCTOR = "import time\n\nclass Hang:\n    def __del__(self):\n        time.sleep(3600)\n\n"


def test_hanging_exit_handlers_do_not_delay_the_end(tmp_path: Path) -> None:
    """Exit handlers and destructors that hang are skipped: by the trial, the workers and the master; TERM ends all with 0."""
    python = f"{DESTRUCTOR}{EXIT_HANGS}threading = __import__('threading')\nthreading._register_atexit(time.sleep, 3600)\n"
    put(tmp_path, "m", identity(), python=f"{python}\n{failing('', 'pass')}")

    with Server(tmp_path, workers=2) as server:
        assert server.infer("m", {"x": ("FP32", [[1, 2, 3]])})[0] == 200
        server.stop()
