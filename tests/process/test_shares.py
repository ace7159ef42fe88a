"""Connections that clients keep: a new worker has its share of them within seconds, and no client sees how."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTTIN
from threading import Event, Thread

import psutil
import urllib3

from tests.clients import infer
from tests.models import identity, put
from tests.server import Server

POOL = 32
SECONDS = 10.0
KILLED = (r"Worker \(pid:\d+\) was sent SIGKILL", r"worker \d \(\w+\): (killed by SIGKILL|ended$)")
HEAD, _, BODY = infer(7).partition(b"\r\n\r\n")
PATH = HEAD.split(b" ")[1].decode()


class Pool:
    """As many clients as `POOL`, each with a kept connection and without retries, all sending all the time."""

    def __init__(self, server: Server) -> None:
        """Begin."""
        self.server = server
        self.answered = 0
        self.errors: list[urllib3.exceptions.HTTPError] = []
        self.stopped = Event()
        self.threads = [Thread(target=self._send) for _ in range(POOL)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        pool = urllib3.HTTPConnectionPool(self.server.host, self.server.port, maxsize=1, retries=False, timeout=30)
        while not self.stopped.wait(0.01):
            try:
                assert pool.request("POST", PATH, body=BODY).status == 200
                self.answered += 1
            except urllib3.exceptions.HTTPError as error:
                self.errors.append(error)
        pool.close()

    def stop(self) -> None:
        """Send no more."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def shares(self) -> dict[int, int]:
        """How many connections each active worker has."""
        port, found = self.server.port, {}
        for worker in self.server.wait_state("active"):
            try:
                sockets = psutil.Process(worker["pid"]).net_connections("tcp4")
            except psutil.NoSuchProcess:
                continue
            found[worker["pid"]] = sum(each.status == "ESTABLISHED" and each.laddr[1:] == (port,) for each in sockets)
        return found

    def spread(self, workers: int) -> bool:
        """Whether so many workers have all the connections, and none less than half of its share."""
        counts = self.shares().values()
        return len(counts) == workers and sum(counts) >= POOL - 2 and min(counts) >= POOL / workers / 2


@contextmanager
def _pool(server: Server) -> Iterator[Pool]:
    pool = Pool(server)
    try:
        yield pool
    finally:
        pool.stop()


def _served_by_all(server: Server, pool: Pool) -> None:
    """Every active worker answers requests from now on."""
    before = {worker["pid"]: worker["requests"] for worker in server.wait_state("active")}
    answered = pool.answered
    server.wait(lambda: pool.answered > answered + 10 * POOL, "requests")
    after = {worker["pid"]: worker["requests"] for worker in server.wait_state("active")}
    assert all(after[pid] > before[pid] for pid in before)


def test_one_more_worker(tmp_path: Path) -> None:
    """TTIN beside 32 kept connections to one worker: the new ones have theirs within seconds, and no request fails."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, max_workers=3) as server:
        with _pool(server) as pool:
            server.wait(lambda: pool.spread(1), "all of the connections at one worker")
            for workers in (2, 3):
                server.send(SIGTTIN)
                server.wait_state("active", workers)
                server.wait(lambda workers=workers: pool.spread(workers), f"shares of {workers}", SECONDS)  # type: ignore[misc]
            _served_by_all(server, pool)
        assert pool.errors == []


def test_a_killed_worker(tmp_path: Path) -> None:
    """After `kill -9` of one of two the replacement gets its share; who was not in the killed worker sees no error at all."""
    put(tmp_path, "m", identity("FP64", 1))
    with Server(tmp_path, workers=2) as server:
        server.expect(*KILLED)
        with _pool(server) as pool:
            server.wait(lambda: pool.spread(2), "shares", SECONDS)
            victim = next(iter(pool.shares()))
            os.kill(victim, SIGSTOP)  # or it would accept more between the count and its end
            server.wait(lambda: psutil.Process(victim).status() == psutil.STATUS_STOPPED, "the victim to stand still")
            mine = pool.shares()[victim]
            os.kill(victim, SIGKILL)
            server.wait(lambda: victim not in pool.shares() and pool.spread(2), "shares again")
            assert len(pool.errors) <= mine, "others than those in the killed worker"
            pool.errors.clear()
            _served_by_all(server, pool)
        assert pool.errors == []
