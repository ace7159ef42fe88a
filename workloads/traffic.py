"""An open loop: requests are meant for times that are fixed beforehand, whatever the server does."""

from __future__ import annotations

import threading
import time

from workloads.client import Client, Reopened
from workloads.windows import Answer


class Traffic:
    """A constant rate of one request, on as many connections as there are clients; each client asks for its next `send`.

    A request that finds no client free waits for one, in order, and its latency counts that time.
    """

    def __init__(self, request: bytes, rate: float) -> None:
        """Plan `rate` requests a second from `begin` on."""
        self.request = request
        self.rate = rate
        self.reopened = Reopened()
        self.clients: list[Client] = []
        self.answers: list[Answer] = []
        self.began = 0.0
        self.begun = threading.Event()
        self.taken = 0
        self.running = 0
        self.over = threading.Event()

    def client(self, host: str, port: int) -> Client:
        """One more client, which connects with its first request."""
        self.clients.append(Client(host, port, self.reopened))
        return self.clients[-1]

    def begin(self) -> None:
        """The first request is meant for now."""
        self.began = time.perf_counter()
        self.begun.set()

    def send(self, client: Client) -> Answer | None:
        """Wait for the time of the next request, send it, read its answer; None once the traffic has ended."""
        self.begun.wait()
        due = self.began + self.taken / self.rate
        self.taken += 1
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        if self.over.is_set():
            return None
        sent = time.perf_counter()
        self.running += 1
        try:
            error = client.exchange(self.request)
        finally:
            self.running -= 1
        answer = Answer(due, sent, time.perf_counter(), sent - due if wait > 0 else 0.0, error, client.port)
        self.answers.append(answer)
        return answer

    def end(self) -> None:
        """Begin no more, and wait for the answers to what was sent."""
        self.over.set()
        while self.running:
            time.sleep(0.01)
