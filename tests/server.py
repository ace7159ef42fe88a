"""A real server for tests: gunicorn with our configuration, ports from the kernel, its log kept, shown clean at its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.orphan import Orphan, adopt_orphans

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds after which a condition that has not come is a failure."""


def held_port() -> socket.socket:
    """A port that the kernel gives to nobody else as long as this is open; who asks for it by its number may have it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    return made


class Server:
    """`with Server(models) as server:` is a ready server; at the end it is stopped by TERM and shown clean.

    `clean` fails the test on a process that is left, a wrong exit status, or a line of level ERROR or above that was not
    announced by `expect`.
    """

    def __init__(self, models: Path, *arguments: str, ready: bool = True, **settings: object) -> None:
        """Serve `models`; `settings` are ours without prefix (`workers=2`); `arguments` go to gunicorn."""
        self.models = models
        self.command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), *arguments]
        self.wait_for_ready = ready
        given = {
            "models": models,
            "workers": 1,
            "threads": 1,
            "device": "cpu",
            "bind": "127.0.0.1:0",
            "management_bind": "127.0.0.1:0",
            **settings,
        }
        self.settings = {f"WARMFORK_{name.upper()}": str(value) for name, value in given.items()}
        self.lines: list[str] = []
        self.expected: list[str] = []
        self.news = threading.Condition()
        self.family: dict[int, float] = {}
        self.patience = PATIENCE
        """Seconds after which a condition that has not come is a failure, where no `timeout` is given; more for a server that
        stands back behind all others."""
        self.sockets: tuple[int, ...] = ()
        """Descriptors that it inherits."""

    def start(self) -> Self:
        """Start gunicorn and return at once."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WARMFORK_")}
        self.process: subprocess.Popen[str] | Orphan = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**environment, **self.settings, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=self.sockets,
        )
        self.group = self.process.pid
        self.stderr = self.process.stderr
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def __enter__(self) -> Self:
        """Start, and wait for readiness unless `ready=False` was given."""
        self.start()
        try:
            if self.wait_for_ready:
                self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Stop and be shown clean; after a failure just end."""
        if kind is not None:
            self.kill()
            sys.stderr.write(self.log)
            return
        if self.process.poll() is None:
            self.stop()

    def _read(self) -> None:
        assert self.stderr is not None
        for line in self.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        self.stderr.close()
        with self.news:
            self.news.notify_all()

    # --- looking -----------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        with self.news:
            return "".join(self.lines)

    def wait_log(self, pattern: str, timeout: float = 0, *, count: int = 1) -> re.Match[str]:
        """Wait until `pattern` stands in the log `count` times; give the last match."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = list(re.finditer(pattern, "".join(self.lines)))
            return len(found) >= count or not self.reader.is_alive()

        with self.news:
            self.news.wait_for(there, timeout or self.patience)
        assert len(found) >= count, f"{pattern!r} {len(found)} times, not {count}, in:\n{self.log}"
        return found[count - 1]

    @property
    def port(self) -> int:
        """The port of the workers; waits until it is known."""
        return int(self.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])

    @property
    def management_port(self) -> int:
        """The port of the management process; waits until it is known."""
        return int(self.wait_log(r"Management at: http://127\.0\.0\.1:(\d+)")[1])

    @property
    def host(self) -> str:
        """The address without a port."""
        return "127.0.0.1"

    @property
    def url(self) -> str:
        """The workers' base URL."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        management: bool = False,
        timeout: float = 30,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers in lower case, body."""
        port = self.management_port if management else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, content
        finally:
            connection.close()

    def probe(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a management route; 0 and None while nobody answers."""
        try:
            status, _, body = self.request("GET", path, management=True)
        except OSError:
            return 0, None
        return status, json.loads(body)

    def status(self) -> dict[str, Any]:
        """`/status`."""
        found: dict[str, Any] = self.probe("/status")[1]
        return found

    def infer(self, model: str, inputs: dict[str, tuple[str, list[Any]]], timeout: float = 30) -> tuple[int, Any]:
        """One inference as JSON: `inputs` is name to datatype and nested list."""
        import numpy as np  # noqa: PLC0415 - only to measure nested lists

        tensors = [
            {"name": name, "datatype": kind, "shape": list(np.shape(data)), "data": data} for name, (kind, data) in inputs.items()
        ]
        body = json.dumps({"inputs": tensors}).encode()
        status, _, content = self.request("POST", f"/v2/models/{model}/infer", body, timeout=timeout)
        return status, json.loads(content)

    def wait(self, condition: Callable[[], object], what: str, timeout: float = 0) -> None:
        """Wait until `condition` holds, looking every few milliseconds while the server lives."""
        timeout = timeout or self.patience
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"waited {timeout:g} s for {what}:\n{self.log}"
            time.sleep(0.01)

    def wait_ready(self, timeout: float = 0) -> None:
        """Wait for `/readyz` to be 200; fail at once if the server ends."""

        def ready() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before it was ready:\n{self.log}"
            return self.probe("/readyz")[0] == 200

        self.wait(ready, "readiness", timeout)

    def wait_state(self, state: str, count: int = 1, timeout: float = 0) -> list[dict[str, Any]]:
        """Wait until `count` workers at least are in `state`; give them."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            status, page = self.probe("/status")
            found[:] = [worker for worker in page["workers"] if worker["state"] == state] if status else []
            return len(found) >= count

        self.wait(there, f"{count} workers {state}", timeout)
        return found

    def processes(self) -> dict[int, str]:
        """The server's processes by pid, as `ps` shows them; remembered for `clean`."""
        try:
            master = psutil.Process(self.process.pid)
            members = [master, *master.children(recursive=True)]
        except psutil.NoSuchProcess:
            return {}
        found = {}
        for member in members:
            try:
                self.family[member.pid] = member.create_time()
                found[member.pid] = " ".join(member.cmdline()).strip()
            except psutil.NoSuchProcess:
                continue
        return found

    def pid_of(self, title: str) -> int:
        """The pid of the one process whose title contains `title`; waits until it is there."""
        pids: list[int] = []

        def there() -> bool:
            pids[:] = [pid for pid, command in self.processes().items() if title in command]
            return len(pids) == 1

        self.wait(there, f"one process {title!r}")
        return pids[0]

    # --- ending ------------------------------------------------------------------------------------------------------

    def expect(self, *patterns: str) -> None:
        """Announce log lines of level ERROR or above that are part of the test."""
        self.expected.extend(patterns)

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the master, or to the whole process group."""
        self.processes()
        if group:
            os.killpg(self.group, number)
        else:
            os.kill(self.process.pid, number)

    def stop(self, status: int = 0, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the server to stop, and show it clean."""
        self.send(number)
        self.clean(status)

    def clean(self, status: int | None = 0, timeout: float = 0) -> None:
        """Wait for the end; nothing may be left, and the log must be as announced. `status` None: whatever it was."""
        timeout = timeout or self.patience
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self.processes()
            time.sleep(0.01)
        ended = self.process.poll()
        assert ended is not None, f"still running after {timeout:g} s:\n{self.log}"
        self.wait(lambda: not self.left(), "all processes to end", 5)
        self.reader.join(10)
        assert status in (None, ended), f"exit status {ended}, not {status}:\n{self.log}"
        loud = [line for line in self.lines if re.search(r"\[(ERROR|CRITICAL)\]|\"level\": \"(ERROR|CRITICAL)\"|Traceback", line)]
        unexpected = [line for line in loud if not any(re.search(pattern, line) for pattern in self.expected)]
        assert not unexpected, f"unexpected in the log: {unexpected}\n{self.log}"

    def ends(self, status: int, line: str, *others: str) -> None:
        """Start, and wait for an end of the server's own making: one error line matches `line`; `others` may come besides."""
        self.expect(line, "Shutting down: Master$", r"Worker \(pid:\d+\) (exited with code|was sent)", *others)
        self.start().clean(status)
        said = re.findall(rf"\[(?:ERROR|CRITICAL)\] (?:Reason: )?{line}", self.log)
        assert len(said) == 1, f"{line!r} {len(said)} times, not once, in:\n{self.log}"

    def reload(self, refused: str = "") -> None:
        """Send HUP and wait until the new generation serves alone, or is refused for a reason that `refused` matches.

        What serves must be ready all the while; after a refusal it must be the same processes, and /status and the log say why.
        """
        before = self.status()
        serving = {worker["pid"] for worker in self.wait_state("active", before["targets"]["active"])}
        line = rf"\[ERROR\] generation \d+ was refused: {refused}"
        said = len(re.findall(line, self.log))
        self.expect(refused or "^$", r"Worker \(pid:\d+\) (exited with code|was sent)")
        self.send(signal.SIGHUP)

        def over() -> bool:
            assert self.probe("/readyz")[0] == 200
            now = self.status()
            alone = all(worker["generation"] == now["generation"] for worker in now["workers"])
            opened = now["generation"] > before["generation"] and alone and not now["building"]
            assert not (refused and opened), f"opened, {refused!r} should refuse it:\n{self.log}"
            return len(re.findall(line, self.log)) > said if refused else opened

        self.wait(over, refused or "the next generation")
        if refused:
            self.wait(lambda: re.search(refused, " ".join(self.status()["reasons"])), "the reason on the page")
            assert serving == {worker["pid"] for worker in self.wait_state("active")}
        else:
            assert self.status()["reasons"] == []

    def hand_over(self) -> None:
        """Send USR2, and go on with the new master once it serves alone."""
        adopt_orphans()
        self.send(signal.SIGUSR2)
        self.follow()

    def follow(self, status: int = 0) -> None:
        """Wait until a master that has started another ends, with `status`, and all that was its own; go on with the new one."""
        old, before = self.process.pid, self.processes().keys()
        self.wait(lambda: self.process.poll() is not None, "the end of the old master")
        assert self.process.poll() == status, self.log
        workers: list[int] = []

        def there() -> bool:
            answered, page = self.probe("/status")
            workers[:] = [worker["pid"] for worker in page["workers"] if worker["pid"]] if answered else []
            return bool(workers)

        self.wait(there, "workers of the new master")
        self.process = Orphan(psutil.Process(workers[0]).ppid())
        assert self.process.pid != old
        members = self.processes().keys()
        self.wait(lambda: not before - members & set(self.left()), "the end of all that was the old master's")

    def left(self) -> list[int]:
        """The pids of those seen by `processes` that still run."""
        left = []
        for pid, created in self.family.items():
            try:
                process = psutil.Process(pid)
                if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(pid)
            except psutil.NoSuchProcess:
                continue
        return left

    def kill(self) -> None:
        """End everything at once, without looking."""
        self.processes()
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(10)
