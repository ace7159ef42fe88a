"""The reference client, unmodified: every call that the protocol has, every datatype, as bytes and as JSON, packed and not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from server.tensors import DTYPES
from tests.server import Server

JSON_TYPES = sorted(set(DTYPES) - {"FP16", "BF16"})
"""What the client can write as JSON."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    """One client, its connections kept."""
    made = triton.InferenceServerClient(f"{server.host}:{server.port}")
    yield made
    made.close()


def sample(datatype: str) -> np.ndarray[Any, Any]:
    """Two rows that a datatype can hold."""
    if datatype == "BYTES":
        return np.array([[b"", b"abc", '\u00e9,"['.encode()]] * 2, object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    return np.array([[0, 1, 2], [3, 100, 127]], DTYPES[datatype])


def tensor(name: str, datatype: str, array: np.ndarray[Any, Any], *, binary: bool = True) -> Any:
    """An input as the client makes it."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_the_server(client: Any) -> None:
    """Live, ready and known by name; a model that is not there is not ready."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("two")
    assert client.is_model_ready("two", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("two", "9")
    metadata = client.get_server_metadata()
    assert metadata["name"] == "warmfork"
    assert metadata["extensions"] == ["binary_tensor_data", "statistics", "model_repository"]


def test_the_models(client: Any) -> None:
    """The index has every model; metadata has names, types and shapes."""
    index = client.get_model_repository_index()
    names = {entry["name"] for entry in index}
    assert {f"identity_{datatype.lower()}" for datatype in DTYPES} | {"two", "raises", "filetype"} <= names
    assert {entry["state"] for entry in index} == {"READY"}
    metadata = client.get_model_metadata("two", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["platform"]
    assert metadata["inputs"] == [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "b")]
    assert [output["name"] for output in metadata["outputs"]] == ["sum", "difference"]


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"], ids=["plain", "gzip", "deflate"])
@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_a_tensor_as_bytes(client: Any, datatype: str, packed: str | None) -> None:
    """Every datatype there and back as bytes, the body packed or not."""
    array = sample(datatype)
    outputs = [triton.InferRequestedOutput("y", binary_data=True)]
    inputs = [tensor("x", datatype, array)]
    result = client.infer(
        f"identity_{datatype.lower()}", inputs, outputs=outputs, request_id="7", request_compression_algorithm=packed
    )
    assert np.array_equal(array, result.as_numpy("y"))
    assert result.get_response()["id"] == "7"
    assert result.get_output("y")["datatype"] == datatype


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_a_tensor_as_json(client: Any, datatype: str) -> None:
    """Every datatype that the client can write as JSON there and back."""
    array = sample(datatype)
    outputs = [triton.InferRequestedOutput("y", binary_data=False)]
    result = client.infer(f"identity_{datatype.lower()}", [tensor("x", datatype, array, binary=False)], outputs=outputs)
    back = result.as_numpy("y")
    assert np.array_equal(array, np.char.encode(back.astype(str)) if datatype == "BYTES" else back)


def test_two_inputs_and_no_outputs_named(client: Any) -> None:
    """Without outputs the client asks for all of them as bytes; one input as JSON and one as bytes go together."""
    a, b = np.full((1, 3), 5, np.float32), np.full((1, 3), 2, np.float32)
    result = client.infer("two", [tensor("a", "FP32", a, binary=False), tensor("b", "FP32", b)])
    assert result.as_numpy("sum").tolist() == [[7, 7, 7]]
    assert result.as_numpy("difference").tolist() == [[3, 3, 3]]


@pytest.mark.parametrize("count", [9, 16, 37])
def test_more_rows_than_a_batch(client: Any, count: int) -> None:
    """A request with more rows than the largest batch gets all of them back, each in its place."""
    array = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    for name in ("identity_fp32", "lengths"):
        assert np.array_equal(array, client.infer(name, [tensor("x", "FP32", array)]).as_numpy("y"))


def test_requests_at_once(client: Any) -> None:
    """`async_infer` gets each request its own answer."""
    arrays = [np.full((1, 3), number, np.float32) for number in range(20)]
    waiting = [client.async_infer("identity_fp32", [tensor("x", "FP32", array)]) for array in arrays]
    assert [result.get_result().as_numpy("y")[0, 0] for result in waiting] == list(range(20))


def test_statistics(client: Any) -> None:
    """Every result and every error is counted once, over all workers."""

    def counts() -> tuple[int, int, int]:
        (stats,) = client.get_inference_statistics("two", "1")["model_stats"]
        inference = stats["inference_stats"]
        return stats["inference_count"], inference["success"]["count"], inference["fail"]["count"]

    before = counts()
    array = np.zeros((1, 3), np.float32)
    for _ in range(5):
        client.infer("two", [tensor("a", "FP32", array), tensor("b", "FP32", array)])
    with pytest.raises(InferenceServerException):
        client.infer("two", [tensor("a", "FP32", array)])
    assert (5, 5, 1) == tuple(after - first for after, first in zip(counts(), before, strict=True))
    assert len(client.get_inference_statistics()["model_stats"]) >= len(DTYPES) + 2


def test_an_error_reaches_the_client(client: Any) -> None:
    """The client reads status and sentence of a refusal."""
    with pytest.raises(InferenceServerException, match="at most 8, got 9") as caught:
        client.infer("lengths", [tensor("x", "FP32", np.zeros((1, 9), np.float32))])
    assert caught.value.status() == "400"
