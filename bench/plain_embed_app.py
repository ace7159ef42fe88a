"""What one would write without us for `embed`: gthread, falcon, sentence-transformers; one text, in and out as binary tensors."""

import os

import falcon
import msgspec
import torch
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
_model = SentenceTransformer(os.environ["MODEL"], device="cpu")


class _Infer:
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = request.bounded_stream.read()
        length = int(request.get_header("Inference-Header-Content-Length") or 0)
        vectors = _model.encode([body[length + 4 :].decode()], convert_to_numpy=True)
        size = {"binary_data_size": vectors.nbytes}
        output = {"name": "embedding", "datatype": "FP32", "shape": list(vectors.shape), "parameters": size}
        head = msgspec.json.encode({"outputs": [output]})
        response.set_header("Inference-Header-Content-Length", str(len(head)))
        response.data = head + vectors.tobytes()


app = falcon.App()
app.add_route("/v2/models/embed/infer", _Infer())
