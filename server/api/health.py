"""The health of the server and of a model, as the protocol asks for it."""

from __future__ import annotations

from functools import partial

import falcon
import msgspec

from server.processes import alive
from server.readiness import verdict
from server.serving import Served


class Health:
    """`/v2/health/live`, `/v2/health/ready` and `…/ready` of a model."""

    def __init__(self, served: Served) -> None:
        """Answer for what `served` gives at each request."""
        self._served = served

    def on_get_live(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200: whoever can answer is alive."""
        resp.data = msgspec.json.encode({"live": True})

    def on_get_ready(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200 while requests will be answered; 503 with the reasons while not."""
        board = self._served().board
        judged = verdict(board.glance(), self._served().settings.ready_min, partial(alive, parent=board.get("master")))
        answer: dict[str, object] = {"ready": judged.ready}
        if not judged.ready:
            resp.status = falcon.HTTP_503
            answer |= {"error": "; ".join(judged.reasons), "reasons": judged.reasons}
        resp.data = msgspec.json.encode(answer)

    def on_get_model(self, _req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None) -> None:
        """Answer 200 for a model that is served: none is served before it is warm."""
        model = self._served().find(name, version)
        resp.data = msgspec.json.encode({"name": model.name, "ready": True})

    on_head_live = on_get_live
    on_head_ready = on_get_ready
    on_head_model = on_get_model
