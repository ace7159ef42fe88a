"""What one would write to batch without us: gthread, falcon, and a thread that runs whatever waits as one batch."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future
from typing import Any

import falcon
import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

LARGEST = 32

_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = 1
_session = onnxruntime.InferenceSession(os.environ["MODEL"], _options, providers=["CPUExecutionProvider"])
_waiting: queue.SimpleQueue[tuple[npt.NDArray[np.float32], Future[Any]]] = queue.SimpleQueue()


def _run_batches() -> None:
    while True:
        batch = [_waiting.get()]
        while len(batch) < LARGEST and not _waiting.empty():
            batch.append(_waiting.get())
        (results,) = _session.run(None, {"x": np.concatenate([row for row, _ in batch])})
        for result, (_, future) in zip(results, batch, strict=True):
            future.set_result(result)


class _Infer:
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = request.bounded_stream.read()
        length = int(request.get_header("Inference-Header-Content-Length") or 0)
        tensor = msgspec.json.decode(body[:length])["inputs"][0]
        answer: Future[npt.NDArray[np.float32]] = Future()
        _waiting.put((np.frombuffer(body, np.float32, offset=length).reshape(tensor["shape"]), answer))
        result = answer.result()
        output = {"name": "y", "datatype": "FP32", "shape": [1, *result.shape]}
        head = msgspec.json.encode({"outputs": [{**output, "parameters": {"binary_data_size": result.nbytes}}]})
        response.set_header("Inference-Header-Content-Length", str(len(head)))
        response.data = head + result.tobytes()


threading.Thread(target=_run_batches, daemon=True).start()  # in the worker: gunicorn imports the app after the fork
app = falcon.App()
app.add_route("/v2/models/products/infer", _Infer())
