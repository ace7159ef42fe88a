"""A server brought to a phase of its life and held there: by a model whose Python waits at gates."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models import identity, put
from tests.server import PATIENCE, Server

BOOT = ("trial", "load", "warming", "waiting")
OPEN = ("serving", "request", "draining")
PHASES = (*BOOT, *OPEN)
"""What `server_in` can bring a server to, in order."""

_GATED = """
import os, re, signal, sys, threading, time
from pathlib import Path
from setproctitle import getproctitle

FOLDER = Path({folder!r})

def pause(gate):
    while gate.exists():
        time.sleep(0.005)

def at(place):
    worker = re.match(r"warmfork: worker (\\d+)", getproctitle())
    for gate in [FOLDER / place, *([FOLDER / (place + "-" + worker[1])] if worker else [])]:
        try:
            code = gate.read_text()
        except FileNotFoundError:
            continue
        with (FOLDER / (gate.name + ".came")).open("a") as came:
            came.write(str(os.getpid()) + "\\n")
        exec(code, globals() | dict(gate=gate))

def under(file):
    frame = sys._getframe()
    while frame and not frame.f_code.co_filename.endswith(file):
        frame = frame.f_back
    return frame is not None

at("trial" if under("server/warmup/trial.py") else "load")

def preprocess(inputs):
    if getproctitle().startswith("warmfork: worker"):
        if under("server/warmup/warm.py"):
            at("warming")
        elif under("server/warmup/proof.py"):
            at("proving")
        elif inputs["x"][0, 0] == 13:
            at("request")
        elif under("server/api/infer.py"):
            at("rehearsal")
    return inputs
"""


class Gated:
    """The model `gated`, an identity whose Python does at a gate what it is told to.

    Gates are `trial` (its import in the trial), `load` (in the master), and in a worker `warming`, `proving`, `rehearsal` and
    `request` (inputs that begin with 13); `warming-1` is the gate of the worker in slot 1 alone. A gate is a file with Python in
    it: no file, no gate.
    """

    def __init__(self, root: Path, *, name: str = "gated") -> None:
        """Write the model into the repository `root`, all gates open."""
        self.folder = root / ".gates"
        self.folder.mkdir(exist_ok=True, parents=True)
        folder = put(root, name, identity(), "batch_sizes = [1, 2]\n", _GATED.format(folder=str(self.folder)))
        self.python = folder / "1" / "model.py"

    def close(self, place: str, code: str = "pause(gate)") -> None:
        """From now on, whoever comes to `place` runs `code`; as it stands, that waits until the gate opens."""
        new = self.folder / f"{place}.new"
        new.write_text(code, encoding="utf-8")
        new.rename(self.folder / place)

    def renew(self) -> None:
        """Write its Python anew, so that the next reload builds it and does not keep it."""
        os.utime(self.python)

    def open(self, place: str) -> None:
        """Let everybody through."""
        (self.folder / place).unlink()

    def open_all(self) -> None:
        """Let everybody through everywhere."""
        for file in self.folder.iterdir():
            if file.suffix != ".came":
                file.unlink()

    def came(self, place: str) -> list[int]:
        """The pids that have come to a closed gate so far, in order."""
        file = self.folder / f"{place}.came"
        return [int(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


PLAIN = {"x": ("FP32", [[1.0, 2.0, 3.0]])}
HELD = {"x": ("FP32", [[13.0, 2.0, 3.0]])}
"""Inputs that come to the gate `request`."""
SHAPES = ("batch=1", "batch=2")


@dataclass
class Scene:
    """A server in a phase; `held` is the request in flight, if the phase is `request`."""

    server: Server
    gated: Gated
    pool: ThreadPoolExecutor
    held: list[Future[tuple[int, Any]]] = field(default_factory=list)

    def ask(self) -> int:
        """One inference that nothing holds: its status."""
        return self.server.infer("gated", PLAIN)[0]

    def hold(self) -> None:
        """One more inference that waits at the gate `request`, and is there."""
        before = len(self.gated.came("request"))
        self.held.append(self.pool.submit(self.server.infer, "gated", HELD, timeout=120))
        self.server.wait(lambda: len(self.gated.came("request")) > before, "a request at the gate")

    def worker(self) -> int:
        """The pid of the worker that the phase is about."""
        if came := self.gated.came("request") or self.gated.came("warming"):
            return came[0]
        return int(self.server.status()["workers"][0]["pid"])


@contextmanager
def server_in(phase: str, root: Path, *arguments: str, patience: float = PATIENCE, **settings: object) -> Iterator[Scene]:
    """A server of two workers in one of `PHASES`, with the model `gated` in `root`; at the end all gates are open."""
    gated = Gated(root)
    gate = {"waiting": "rehearsal-1", "serving": "", "draining": ""}.get(phase, phase)
    if gate:
        gated.close(gate)
    drain = {"drain": 30} if phase == "draining" else {}
    with ThreadPoolExecutor(16) as pool, Server(root, *arguments, ready=False, **{"workers": 2, **drain, **settings}) as server:
        server.patience = patience
        server.wait(lambda: server.probe("/livez")[0] == 200, "the management process")
        scene = Scene(server, gated, pool)
        try:
            _reach(phase, scene)
            yield scene
        finally:
            gated.open_all()


def _reach(phase: str, scene: Scene) -> None:
    server, gated = scene.server, scene.gated

    def until(condition: Callable[[], object]) -> None:
        def there() -> object:
            assert server.process.poll() is None, f"ended with {server.process.returncode} before {phase}:\n{server.log}"
            return condition()

        server.wait(there, f"the phase {phase}")

    if phase in OPEN:
        server.wait_ready()
    match phase:
        case "waiting":
            until(lambda: "waiting" in [worker["state"] for worker in server.status()["workers"]])
        case "request":
            scene.hold()
        case "draining":
            server.send(signal.SIGTERM)
            until(lambda: server.probe("/readyz")[0] == 503)
        case "serving":
            pass
        case _:
            until(lambda: gated.came(phase))
