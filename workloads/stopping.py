"""TERM under load that goes on: what becomes of requests that were begun before it, while the server drains, and after that."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.client import Connection, infer
from bench.report import Figure
from tests.models import identity, put
from tests.server import Server
from workloads import children

BUSY_SECONDS = 0.5
DRAIN_SECONDS = 2
CLIENTS = 10

_PYTHON = """
import time

def preprocess(inputs):
    if inputs["x"][0, 0] == 13:
        time.sleep({busy})
    return inputs
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on a connection of its own."""

    begun: float
    over: float
    outcome: str


def stop(models: Path) -> list[Figure]:
    """TERM under load that goes on until nobody can connect. Half of the requests take `BUSY_SECONDS`."""
    put(models, "m", identity(), "batch_sizes = [1, 2]\n", _PYTHON.format(busy=BUSY_SECONDS))
    found: list[Asked] = []

    def ask(server: Server, *, long: bool) -> None:
        request = infer("m", {"x": np.full((1, 3), 13 if long else 1, np.float32)})
        while True:
            begun = time.monotonic()
            try:
                with Connection(server.port) as connection:
                    outcome = "answered"
                    connection.exchange(request)
            except ConnectionRefusedError:
                return
            except (OSError, ConnectionError) as error:
                outcome = "refused" if " 503 " in str(error) else "lost"
            found.append(Asked(begun, time.monotonic(), outcome))

    # Whatever breaks this off ends the server first, or the clients would ask for ever.
    with ThreadPoolExecutor(CLIENTS) as pool, children.server(models, workers=2, drain=DRAIN_SECONDS) as server:
        clients = [pool.submit(ask, server, long=place < CLIENTS // 2) for place in range(CLIENTS)]
        server.wait(lambda: len(found) > CLIENTS, "answers")
        asked = time.monotonic()
        server.send(signal.SIGTERM)
        server.clean(0)
        for client in clients:
            client.result()
    served = asked + DRAIN_SECONDS - BUSY_SECONDS  # a short one may wait behind a long one, and the drain still lasts
    answered = [each for each in found if each.outcome == "answered"]
    refused = sum(each.outcome == "refused" and each.begun < served for each in found)
    crossed = sum(each.begun < asked < each.over for each in answered)
    drained = sum(asked < each.begun < served for each in answered)
    return [
        Figure("TERM: requests that nobody answered", sum(each.outcome == "lost" for each in found), bound=0),
        Figure("TERM: requests begun before it or while it drains, and refused", refused, bound=0),
        Figure("TERM: requests begun before it and answered after it", crossed, least=1),
        Figure("TERM: requests begun while it drains, and answered", drained, least=1),
        Figure("TERM: exit status", server.process.returncode or 0, bound=0),
    ]
