"""The index of the model repository. Nothing is loaded over HTTP: the operator's `HUP` does that."""

from __future__ import annotations

import falcon
import msgspec

from server.api import body
from server.api.request import parse_index
from server.serving import Served


class RepositoryIndex:
    """`/v2/repository/index`."""

    def __init__(self, served: Served) -> None:
        """Answer for what `served` gives at each request."""
        self._served = served

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with every model and version. `{"ready": true}` changes nothing, since none is served before it is warm."""
        parse_index(body.read(req.env, self._served().settings.max_body))
        index = [
            {"name": name, "version": str(version), "state": "READY", "reason": ""}
            for name, versions in sorted(self._served().models.items())
            for version in sorted(versions)
        ]
        resp.data = msgspec.json.encode(index)
