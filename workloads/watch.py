"""What is looked at and signalled: a master and its workers, ours by `/status`, a plain gunicorn by its children."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil

PATIENCE = 300.0
"""Seconds after which an event that has not ended is a failure."""
PROBE = 1.0
"""Seconds in which a probe must be answered, as Kubernetes has it where nobody says otherwise."""
PAUSE = 0.25
"""Seconds between two looks."""

Found = TypeVar("Found")


class Master(ABC):
    """A server of several workers, which obeys gunicorn's signals."""

    @abstractmethod
    def pid(self) -> int:
        """The master's."""

    @abstractmethod
    def workers(self) -> set[int]:
        """Those that take traffic, by pid; none while nobody can say."""

    @abstractmethod
    def wanted(self) -> int:
        """How many workers there should be that take traffic."""

    @abstractmethod
    def settled(self) -> bool:
        """Whether nothing is being made or about to leave."""

    def more(self) -> None:
        """One more, please."""
        os.kill(self.pid(), signal.SIGTTIN)

    def fewer(self) -> None:
        """One fewer."""
        os.kill(self.pid(), signal.SIGTTOU)

    def served(self) -> dict[int, int]:
        """Requests so far of each that takes traffic, where it says."""
        return {}

    def cold(self) -> int:
        """Batches that were run on a shape that had not been warmed, where it says."""
        return 0


class Ours(Master):
    """A server that runs already, seen through its management process."""

    def __init__(self, management: str) -> None:
        """Look at the management process at the URL `management`."""
        place = urlsplit(management)
        self.host, self.port = place.hostname or "127.0.0.1", place.port or 8001

    def get(self, path: str, patience: float = PATIENCE) -> tuple[int, Any]:
        """Status and JSON of a management route; 0 and None where nobody answers that in `patience` seconds."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """`/status`, as soon as somebody answers."""
        return until(lambda: self.get("/status")[1], "an answer of /status")

    def pid(self) -> int:
        """The parent of the workers: on this machine, since it is to be sent signals."""
        return until(lambda: next(iter(_parents(each["pid"] for each in self.status()["workers"])), 0), "a worker with a parent")

    def workers(self) -> set[int]:
        """The pids of those that take traffic."""
        return {each["pid"] for each in self.status()["workers"] if each["state"] == "active"}

    def wanted(self) -> int:
        """As many as `targets` says."""
        return int(self.status()["targets"]["active"])

    def settled(self) -> bool:
        """Whether each worker is where the targets want it, and of one generation."""
        page = self.status()
        states = sorted(each["state"] for each in page["workers"])
        wanted = ["active"] * page["targets"]["active"] + ["standby"] * page["targets"]["standby"]
        generations = {each["generation"] for each in page["workers"]}
        return not page["building"] and states == wanted and generations == {page["generation"]}

    def served(self) -> dict[int, int]:
        """By pid; it is the slot's count, which may have had other workers before."""
        return {each["pid"]: each["requests"] for each in self.status()["workers"] if each["state"] == "active"}

    def cold(self) -> int:
        """Of all slots in use."""
        return sum(each["cold_dispatches"] for each in self.status()["workers"])


class Plain(Master):
    """A plain gunicorn, of which nothing is known but its processes."""

    def __init__(self, pid: int) -> None:
        """Look at the master `pid`."""
        self.master = psutil.Process(pid)

    def pid(self) -> int:
        """The master's."""
        return self.master.pid

    def workers(self) -> set[int]:
        """All of its children."""
        return {child.pid for child in self.master.children()}

    def wanted(self) -> int:
        """As many as there are: it forks and ends them at once."""
        return len(self.workers())

    def settled(self) -> bool:
        """Its workers say nothing."""
        return True


def _parents(pids: Iterable[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            found.append(psutil.Process(pid).ppid())
        except psutil.NoSuchProcess:
            continue
    return [pid for pid in found if pid > 1]


def until(condition: Callable[[], Found], what: str, patience: float = PATIENCE, pause: float = PAUSE) -> Found:
    """Look every `pause` seconds until `condition` gives something true; give that. Raises `TimeoutError`."""
    end = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > end:
            message = f"waited {patience:g} s for {what}"
            raise TimeoutError(message)
        time.sleep(pause)
    return found


def ended(pid: int) -> bool:
    """Whether a process runs no more, though its parent may not have asked how it ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tree(pid: int) -> list[int]:
    """A process and all that came from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def scale(master: Master, count: int) -> None:
    """One by one, more or fewer, until `count` take traffic and all else has left. Workers are not waited for, servers are."""
    while (before := master.wanted()) != count:
        (master.more if count > before else master.fewer)()
        until(lambda before=before: master.wanted() != before, "the master to heed a signal")  # type: ignore[misc]
    until(lambda: master.settled() and len(master.workers()) == count, f"{count} workers and no other")


def replaced(master: Master, before: set[int]) -> None:
    """Wait until as many others have taken the place of the workers `before`."""

    def over() -> bool:
        now = master.workers()
        return len(now) == len(before) and not now & before and master.settled()

    until(over, "the next generation alone")
