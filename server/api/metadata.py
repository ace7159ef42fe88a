"""What the server and its models say of themselves."""

from __future__ import annotations

from collections.abc import Iterable

import falcon
import msgspec

import server
from server.serving import Served
from server.tensors import TensorSpec

EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository")


class Metadata:
    """`/v2` and `/v2/models/M[/versions/V]`."""

    def __init__(self, served: Served) -> None:
        """Answer for what `served` gives at each request."""
        self._served = served

    def on_get_server(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with name, version and extensions."""
        resp.data = msgspec.json.encode({"name": "warmfork", "version": server.__version__, "extensions": EXTENSIONS})

    def on_get_model(self, _req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None) -> None:
        """Answer with the model's tensors and all its versions that are served."""
        model = self._served().find(name, version)
        answer = {
            "name": model.name,
            "versions": [str(number) for number in sorted(self._served().models[model.name])],
            "platform": model.platform,
            "inputs": _tensors(model.inputs),
            "outputs": _tensors(model.outputs),
        }
        resp.data = msgspec.json.encode(answer)

    on_head_server = on_get_server
    on_head_model = on_get_model


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, object]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]
