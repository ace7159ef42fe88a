"""What one would write without us: gthread, falcon, a session per worker; both encodings of one model, and no check."""

import os

import falcon
import msgspec
import numpy as np
import onnxruntime

_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = 1
_session = onnxruntime.InferenceSession(os.environ["MODEL"], _options, providers=["CPUExecutionProvider"])


class _Infer:
    def on_post(self, request: falcon.Request, response: falcon.Response, model: str) -> None:  # noqa: ARG002 - there is one
        body = request.bounded_stream.read()
        length = int(request.get_header("Inference-Header-Content-Length") or 0)
        tensor = msgspec.json.decode(body[: length or None])["inputs"][0]
        flat = np.frombuffer(body, np.float32, offset=length) if length else np.array(tensor["data"], np.float32)
        (result,) = _session.run(None, {tensor["name"]: flat.reshape(tensor["shape"])})
        output = {"name": "y", "datatype": "FP32", "shape": list(result.shape)}
        if length:
            head = msgspec.json.encode({"outputs": [{**output, "parameters": {"binary_data_size": result.nbytes}}]})
            response.set_header("Inference-Header-Content-Length", str(len(head)))
            response.data = head + result.tobytes()
        else:
            response.data = msgspec.json.encode({"outputs": [{**output, "data": result.ravel().tolist()}]})


app = falcon.App()
app.add_route("/v2/models/{model}/infer", _Infer())
