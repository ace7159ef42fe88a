"""A short load of our own through the whole way: the connection's code, the parser, the WSGI app, the codec, the model.

All of these are cold in a new process too: a model warmed alone answers its first HTTP request far more slowly than the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from server.exits import ModelError
from server.models.model import Model
from server.warmup.own_request import Exchange, requests
from server.warmup.polite import FULL_SPEED, Pace

ROUNDS = 2
"""Times that every shape is sent, in every encoding, at least."""
MOST_ROUNDS = 10
MOST_SECONDS = 2.0
"""After which no further round begins."""


def rehearse(
    model: Model,
    exchange: Exchange,
    say: Callable[[str], None],
    pace: Pace = FULL_SPEED,
) -> None:
    """Send every shape of `model` as JSON and as binary tensors, again and again for a while.

    Raises `ModelError` naming the shape if an answer is not 200, or the 95th percentile if it is past the model's bound.
    """
    made = requests(model, pace)
    times: list[float] = []
    end = time.monotonic() + MOST_SECONDS
    for turn in range(MOST_ROUNDS):
        for request in made:
            say(request.where)
            took = pace.here(partial(request.send, exchange, pace))
            if turn:  # the first round is what makes it warm
                times.append(took * 1e3)
        if turn + 1 >= ROUNDS and time.monotonic() > end:
            break
    bound = model.files.toml.p95_ms
    if bound is None:
        return
    p95 = sorted(times)[math.ceil(0.95 * len(times)) - 1]
    if p95 > bound:
        message = f"model {model.key}: p95 of {len(times)} requests of our own is {p95:.1f} ms, its p95_ms is {bound:g}"
        raise ModelError(message)
