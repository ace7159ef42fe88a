"""What a garbage collection goes through: not what is shared by processes, and not the libraries."""

from __future__ import annotations

from pathlib import Path

from tests.models import identity, put
from tests.server import Server

COLLECTED = """
import gc
import numpy as np
import onnxruntime

def collected(thing):
    return any(each is thing for each in gc.get_objects())

LIBRARY = collected(onnxruntime.InferenceSession)  # by the master, which imports this
MODEL = collected(collected)

def preprocess(inputs):
    if inputs["x"][0, 0] != 2:
        return inputs
    made = []
    return {"x": np.array([[LIBRARY, MODEL, collected(preprocess), collected(made)]], np.float64)}
"""


def test_what_is_collected(tmp_path: Path) -> None:
    """The master collects models and no libraries, a worker what it has made itself, in the first generation and the next."""
    put(tmp_path, "m", identity("FP64", 4), "", COLLECTED)
    with Server(tmp_path) as server:
        for version in (1, 2):
            if version == 2:
                put(tmp_path, "m", identity("FP64", 4), "", COLLECTED, version)
                server.reload()
            answer = server.infer("m", {"x": ("FP64", [[2.0, 0.0, 0.0, 0.0]])})[1]
            assert [str(version), [0, 1, 0, 1]] == [answer["model_version"], answer["outputs"][0]["data"]]
