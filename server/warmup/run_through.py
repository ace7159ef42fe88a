"""The rehearsal in brief, of a worker that boots beside others that serve: what is slow when it is new is done, and no more.

Whatever the thread that serves does itself competes with the workers that serve, so that long runs are done in one that stands
back: the connection's code, the app and the codec are what this is about, the model was warmed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from server.engines.engine import Session
from server.models.model import Model
from server.tensors import Array, Tensors
from server.warmup.own_request import Exchange, requests
from server.warmup.polite import Pace
from server.warmup.warm import AS_FAST

HTTP_MS = 5.0
"""What is around a run, of a worker that is warm."""
MOST_TIMES = 3
LONG_MS = 10.0
"""A run that takes more is done aside, but for the shortest: a thread's first run may be a long one. One that takes less is sent
as JSON too: the codec's first use is nothing beside a longer one."""


def run_through(model: Model, exchange: Exchange, say: Callable[[str], None], pace: Pace, steady_ms: Sequence[float]) -> None:
    """Send every shape of `model` as little as will do, beside others that serve: once, if it is then as fast as it should be.

    `steady_ms`: how long a run takes, by shape. Raises `ModelError` naming the shape if an answer is not 200.
    """
    steady = dict(zip(model.shapes(), steady_ms, strict=True))
    long_ms = max(LONG_MS, min(steady_ms))
    made = requests(model, pace, lambda shape: steady[shape] < LONG_MS)
    with _aside(model, pace) as session:
        for request in made:
            say(request.where)
            # What runs on a GPU does so in a thread of its own, and must have done so.
            session.stands_back = pace.apart and not session.overlaps and steady[request.shape] > long_ms
            for _ in range(MOST_TIMES):
                session.waited = 0.0
                send = partial(request.send, exchange, pace)
                took = send() if session.stands_back else pace.here(send)
                if (took - session.waited) * 1e3 < steady[request.shape] * AS_FAST + HTTP_MS:
                    break


class _Aside:
    """A session whose runs stand back, when told to, though the thread that serves asks for them."""

    def __init__(self, session: Session, pace: Pace) -> None:
        self.session = session
        self.pace = pace
        self.stands_back = False
        self.waited = 0.0
        """Seconds for which its runs were kept waiting by others."""
        self.inputs, self.outputs = session.inputs, session.outputs
        self.overlaps, self.graphs = session.overlaps, session.graphs
        self.enter, self.settle, self.device_ms = session.enter, session.settle, session.device_ms

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return self.pace.aside(partial(self._run, inputs)) if self.stands_back else self.session.run(inputs)

    def _run(self, inputs: Tensors) -> dict[str, Array]:
        before = self.pace.waited()
        outputs = self.session.run(inputs)
        self.waited += self.pace.waited() - before
        return outputs


@contextmanager
def _aside(model: Model, pace: Pace) -> Iterator[_Aside]:
    session = model.session
    model.session = aside = _Aside(session, pace)
    try:
        yield aside
    finally:
        model.session = session
