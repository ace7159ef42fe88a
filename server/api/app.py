"""The WSGI app of a worker: every route of the protocol."""

from __future__ import annotations

import falcon

from server import serving
from server.api import errors
from server.api.health import Health
from server.api.infer import Infer
from server.api.metadata import Metadata
from server.api.repository import RepositoryIndex
from server.api.statistics import Statistics
from server.serving import Served

App = falcon.App[falcon.Request, falcon.Response]


def create(served: Served) -> App:
    """Make the app that answers for what `served` gives at each request."""
    app = falcon.App(middleware=[errors.KnownMethods()])
    app.req_options.strip_url_path_trailing_slash = True
    errors.install(app)
    health, metadata, statistics = Health(served), Metadata(served), Statistics(served)
    app.add_route("/v2/health/live", health, suffix="live")
    app.add_route("/v2/health/ready", health, suffix="ready")
    app.add_route("/v2/models/stats", statistics, suffix="all")
    app.add_route("/v2/repository/index", RepositoryIndex(served))
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_route(model, metadata, suffix="model")
        app.add_route(f"{model}/ready", health, suffix="model")
        app.add_route(f"{model}/stats", statistics, suffix="model")
        app.add_route(f"{model}/infer", Infer(served))
    app.add_route("/v2", metadata, suffix="server", compile=True)  # the last: all routes, now and not at the first request
    return app


application = create(serving.current)
"""For gunicorn. Made in the master, which imports this, so that its workers share it; what it serves is its worker's own."""
