"""The WSGI app in this process, in front of models that give back what they get."""

from __future__ import annotations

import gzip
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from falcon import testing
from hypothesis import given, settings
from hypothesis import strategies as st

import server
from server.api import app
from server.environ import RECEIVED
from server.refusals import BusyError, LateError, RefusalError
from server.scoreboard import Scoreboard
from server.serving import Serving
from server.settings import Settings
from server.states import Event, Phase
from server.tensors import DTYPES, FLOATS, Array, Tensors, TensorSpec

MAX_BODY = 100_000


@dataclass(eq=False)
class FakeModel:
    """What the app sees of a model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: int = 1
    platform: str = "fake"

    @property
    def key(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"


def tensor(name: str, datatype: str) -> TensorSpec:
    """A tensor of three columns."""
    return TensorSpec(name, datatype, (-1, 3), ("batch", None))


def identity(datatype: str, version: int = 1) -> FakeModel:
    """A model with one input that gives it back."""
    return FakeModel(f"identity_{datatype.lower()}", (tensor("x", datatype),), (tensor("y", datatype),), version)


class FakeServing:
    """What the app sees of `Serving`; it notes what is counted."""

    def __init__(self) -> None:
        """Serve an identity for each datatype, one of them in two versions, and a model with two inputs."""
        pair = (tensor("a", "FP32"), tensor("b", "FP32"))
        models = [
            *map(identity, DTYPES),
            identity("FP32", 2),
            FakeModel("two", pair, (tensor("sum", "FP32"), tensor("difference", "FP32"))),
        ]
        self.models: dict[str, dict[int, FakeModel]] = {}
        for model in models:
            self.models.setdefault(model.name, {})[model.version] = model
        self.board = Scoreboard.create(2)
        for index, model in enumerate(models):
            self.board.header["names"][0][index] = model.key.encode()
        self.slot = 0
        self.settings = Settings.read({"WARMFORK_MAX_BODY": str(MAX_BODY)})
        self.raises: Exception | None = None
        self.full: BusyError | None = None
        self.received = 0
        self.gives: Mapping[str, Array] | None = None
        self.counted: list[tuple[str, str | None]] = []

    def find(self, name: str, version: str | None) -> FakeModel:
        """The real look-up, in these models."""
        return cast("FakeModel", Serving.find(cast("Serving", self), name, version))

    def admit(self) -> None:
        """Let everybody in, unless this serving is full."""
        if self.full:
            raise self.full

    def infer(self, model: FakeModel, inputs: Tensors, received_ns: int) -> Mapping[str, Array]:
        """The inputs, in the names of the outputs."""
        assert received_ns > 0
        self.received = received_ns
        if self.raises:
            raise self.raises
        if self.gives:
            return self.gives
        if model.name == "two":
            return {"sum": inputs["a"] + inputs["b"], "difference": inputs["a"] - inputs["b"]}
        return {"y": inputs["x"]}

    def answered(self, model: FakeModel, received_ns: int, input_ns: int, output_ns: int) -> None:
        """Note a result."""
        assert min(received_ns, input_ns, output_ns) >= 0
        self.counted.append(("answered", model.name))

    def refused(self, model: FakeModel | None, received_ns: int) -> None:
        """Note an error."""
        assert received_ns > 0
        self.counted.append(("refused", model.name if model else None))


@pytest.fixture(scope="module")
def one() -> FakeServing:
    """One serving for tests that leave it as it was."""
    return FakeServing()


@pytest.fixture(scope="module")
def shared(one: FakeServing) -> testing.TestClient:
    """A client for tests that leave the serving as it was."""
    return testing.TestClient(app.create(lambda: cast("Serving", one)))


@pytest.fixture
def served() -> FakeServing:
    """A fresh serving."""
    return FakeServing()


@pytest.fixture
def client(served: FakeServing) -> testing.TestClient:
    """A client of a fresh app."""
    return testing.TestClient(app.create(lambda: cast("Serving", served)))


def fp32(**more: object) -> dict[str, Any]:
    """A good request to `identity_fp32`."""
    return {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}], **more}


def infer(client: testing.TestClient, content: object, model: str = "identity_fp32", **options: Any) -> testing.Result:
    """Send an inference; `content` is JSON unless it is bytes."""
    raw = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return client.simulate_post(f"/v2/models/{model}/infer", body=raw, **options)


def refused(result: testing.Result, status: int) -> str:
    """The sentence of an error that has the form of the contract."""
    assert status == result.status_code
    assert result.headers["content-type"] == "application/json"
    sentence = result.json["error"]
    assert isinstance(sentence, str)
    assert sentence
    return sentence


def test_the_server_says_what_it_is(client: testing.TestClient) -> None:
    """With and without the closing slash."""
    for path in ("/v2", "/v2/"):
        assert client.simulate_get(path).json == {
            "name": "warmfork",
            "version": server.__version__,
            "extensions": ["binary_tensor_data", "statistics", "model_repository"],
        }


def test_a_model_says_what_it_is(client: testing.TestClient) -> None:
    """The metadata has every version, and the tensors with -1 for a free axis."""
    expected = {
        "name": "identity_fp32",
        "versions": ["1", "2"],
        "platform": "fake",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    for path in ("/v2/models/identity_fp32", "/v2/models/identity_fp32/versions/1"):
        assert client.simulate_get(path).json == expected


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/health/live", "/v2/models/stats", "/v2/models/two", "/v2/models/two/ready", "/v2/models/two/versions/1/stats"],
)
def test_head_is_get_without_the_body(client: testing.TestClient, path: str) -> None:
    """HEAD has the status and the length of GET."""
    got, head = client.simulate_get(path), client.simulate_head(path)
    assert (200, 200, b"") == (got.status_code, head.status_code, head.content)
    assert got.headers["content-length"] == head.headers["content-length"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v3",
        "/v2/models",
        "/v2/models/",
        "/v2/models//ready",
        "/v2/models/%00/ready",
        "/v2/models/%FF",
        "/v2/models/two%2Fready/ready",
        "/v2/models/nope",
        "/v2/models/nope/stats",
        "/v2/models/two/versions/",
        "/v2/models/two/versions/2",
        "/v2/models/two/versions/0",
        "/v2/models/two/versions/-1",
        "/v2/models/two/versions/01",
        "/v2/models/two/versions/one/ready",
        "/v2/models/two/versions/%D9%A1",
        "/v2/models/two/versions/" + "1" * 5000,
        "/v2/models/two/config",
    ],
)
def test_what_is_not_there_is_404(client: testing.TestClient, path: str) -> None:
    """Unknown addresses, models and versions are 404 in JSON, however they are written."""
    refused(client.simulate_get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2", {"GET", "HEAD"}),
        ("DELETE", "/v2/models/two", {"GET", "HEAD"}),
        ("GET", "/v2/models/two/infer", {"POST"}),
        ("GET", "/v2/repository/index", {"POST"}),
        ("PUT", "/v2/models/two/versions/1/infer", {"POST"}),
    ],
)
def test_other_methods_are_405(client: testing.TestClient, method: str, path: str, allowed: set[str]) -> None:
    """The answer says in words and in `Allow` what is allowed."""
    result = client.simulate_request(method, path)
    assert method in refused(result, 405)
    assert allowed <= set(result.headers["allow"].split(", "))


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_a_method_nobody_knows_is_405(client: testing.TestClient) -> None:
    """A made-up method is treated as any other that is not allowed."""
    result = client.simulate_request("BREW", "/v2/models/two/infer")
    refused(result, 405)
    assert result.headers["allow"] == "POST"


def test_ready_says_why_not(client: testing.TestClient, served: FakeServing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness is computed from the page at each request, and its reasons are given."""
    result = client.simulate_get("/v2/health/ready")
    assert "no generation has opened yet" in refused(result, 503)
    assert result.json["ready"] is False
    assert len(result.json["reasons"]) == 2
    monkeypatch.setattr("server.api.health.alive", lambda _pid, parent: parent > 0)
    served.board.set("generation", 1)
    served.board.enter(Phase.SERVING)
    for event in (Event.FORK, Event.LOAD, Event.WARM, Event.PROVE, Event.ARRIVE, Event.OPEN):
        served.board.move(0, event)
    assert client.simulate_get("/v2/health/ready").status_code == 200
    served.board.enter(Phase.DRAINING)
    assert "going away" in refused(client.simulate_get("/v2/health/ready"), 503)


def in_json(datatype: str, content: bytes | list[bytes]) -> bool:
    """Whether JSON can hold the items of a tensor."""
    if isinstance(content, bytes):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return datatype not in FLOATS or bool(np.isfinite(np.frombuffer(content, DTYPES[datatype])).all())
    try:
        return all(item.decode() is not None for item in content)
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [("BF16", b"\x81\x7f"), ("FP16", b"\x01\x7c"), ("FP32", b"\1\0\x80\x7f"), ("FP64", b"\1\0\0\0\0\0\xf0\x7f")],
)
def test_signalling_nan(shared: testing.TestClient, datatype: str, raw: bytes) -> None:
    """No float that a client sends makes numpy warn, a signalling NaN neither: JSON can't hold it, and that is said."""
    content = raw + bytes(2 * len(raw))
    given_input = {"name": "x", "shape": [1, 3], "datatype": datatype, "parameters": {"binary_data_size": len(content)}}
    head = msgspec.json.encode({"inputs": [given_input]})
    headers = {"Inference-Header-Content-Length": str(len(head))}

    result = infer(shared, head + content, f"identity_{datatype.lower()}", headers=headers)

    assert "'y' has NaN" in refused(result, 400)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_datatype_goes_through(one: FakeServing, shared: testing.TestClient, data: st.DataObject) -> None:
    """A tensor sent as bytes comes back the same, as bytes whatever it holds, and as JSON where JSON can hold it."""
    datatype = data.draw(st.sampled_from(sorted(DTYPES)))
    rows = data.draw(st.integers(1, 3))
    binary, packed = data.draw(st.tuples(st.booleans(), st.booleans()))
    count = rows * 3
    items: list[bytes] = []
    if datatype == "BYTES":
        items = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        raw = b"".join(len(item).to_bytes(4, "little") + item for item in items)
    else:
        size = count * DTYPES[datatype].itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
        raw = bytes(byte & 1 for byte in raw) if datatype == "BOOL" else raw
    given_input = {"name": "x", "shape": [rows, 3], "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = msgspec.json.encode({"id": "7", "inputs": [given_input], "parameters": {"binary_data_output": binary}})
    headers = {"Inference-Header-Content-Length": str(len(head))} | ({"Content-Encoding": "gzip"} if packed else {})
    content = gzip.compress(head + raw) if packed else head + raw
    result = infer(shared, content, f"identity_{datatype.lower()}", headers=headers)
    if binary:
        assert result.headers["content-type"] == "application/octet-stream"
        length = int(result.headers["Inference-Header-Content-Length"])
        answer = msgspec.json.decode(result.content[:length])
        assert raw == result.content[length:]
        assert answer["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
        assert one.counted[-1] == ("answered", f"identity_{datatype.lower()}")
    elif not in_json(datatype, items if datatype == "BYTES" else raw):
        assert "'y'" in refused(result, 400)
        assert one.counted[-1] == ("refused", f"identity_{datatype.lower()}")
        return
    else:
        answer = result.json
        values = answer["outputs"][0].pop("data")
        if datatype == "BYTES":
            assert [item.decode() for item in items] == values
        else:
            assert np.array_equal(np.frombuffer(raw, DTYPES[datatype]), np.array(values, DTYPES[datatype]))
    assert answer["model_name"] == f"identity_{datatype.lower()}"
    assert answer["id"] == "7"
    assert (answer["outputs"][0]["shape"], answer["outputs"][0]["datatype"]) == ([rows, 3], datatype)


@pytest.mark.parametrize("shape", [[0, 3], [1, 0], [0, 1 << 31]])
@pytest.mark.parametrize("binary", [True, False])
def test_nothing_is_no_input(client: testing.TestClient, served: FakeServing, shape: list[int], *, binary: bool) -> None:
    """A tensor without any element is the client's fault, before an array of any length is made."""
    served.models["identity_fp32"] = {1: FakeModel("identity_fp32", (TensorSpec("x", "FP32", (-1, -1), ("a", "b")),), ())}
    nothing: dict[str, Any] = {"parameters": {"binary_data_size": 0}} if binary else {"data": []}
    given_input = {"name": "x", "shape": shape, "datatype": "FP32", **nothing}
    content = msgspec.json.encode({"inputs": [given_input]})
    headers = {"Inference-Header-Content-Length": str(len(content))} if binary else {}

    sentence = refused(infer(client, content, headers=headers), 400)

    assert "input 'x' must have at least 1 along every axis" in sentence


def test_a_version_is_answered_by_that_version(client: testing.TestClient) -> None:
    """The highest version answers where none is named; the id is there only if one came."""
    assert infer(client, fp32()).json == {
        "model_name": "identity_fp32",
        "model_version": "2",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
    }
    assert infer(client, fp32(id="a"), "identity_fp32/versions/1").json["model_version"] == "1"


def test_outputs_come_as_asked(client: testing.TestClient) -> None:
    """A subset, in the order asked for, as JSON or bytes; the request says how where the output does not."""
    inputs = [{"name": name, "shape": [1, 3], "datatype": "FP32", "data": [[1, 2, 3]]} for name in ("b", "a")]
    assert [output["name"] for output in infer(client, {"inputs": inputs}, "two").json["outputs"]] == ["sum", "difference"]
    only = infer(client, {"inputs": inputs, "outputs": [{"name": "difference"}]}, "two").json["outputs"]
    assert only == [{"name": "difference", "datatype": "FP32", "shape": [1, 3], "data": [0.0, 0.0, 0.0]}]
    asked = [{"name": "difference"}, {"name": "sum", "parameters": {"binary_data": False}}]
    result = infer(client, {"inputs": inputs, "outputs": asked, "parameters": {"binary_data_output": True}}, "two")
    length = int(result.headers["Inference-Header-Content-Length"])
    first, second = msgspec.json.decode(result.content[:length])["outputs"]
    assert (first["name"], first["parameters"]) == ("difference", {"binary_data_size": 12})
    assert (second["name"], second["data"]) == ("sum", [2.0, 4.0, 6.0])
    assert result.content[length:] == bytes(12)


def test_a_lone_tensor_needs_no_json(client: testing.TestClient) -> None:
    """A body that is all tensor is answered in bytes, for a model of one input."""
    raw = np.arange(6, dtype=np.float32).tobytes()
    result = infer(client, raw, headers={"Inference-Header-Content-Length": "0"})
    length = int(result.headers["Inference-Header-Content-Length"])
    assert msgspec.json.decode(result.content[:length])["outputs"][0]["shape"] == [2, 3]
    assert raw == result.content[length:]
    sentence = refused(infer(client, raw, "two", headers={"Inference-Header-Content-Length": "0"}), 400)
    assert "takes 'a', 'b'" in sentence


def bad(**change: object) -> dict[str, Any]:
    """A request whose one input is wrong in one way; None takes a key out."""
    request = fp32()
    given_input = {**request["inputs"][0], **change}
    request["inputs"] = [{key: value for key, value in given_input.items() if value is not None}]
    return request


ONE = fp32()["inputs"][0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not valid"),
        (b"{", "not valid"),
        (b"\xef\xbb\xbf{}", "not valid"),
        (b'{"id":"\xff","inputs":[]}', "not UTF-8"),
        (b'{"id":"\\ud800","inputs":[]}', "not valid"),
        (b'{"x":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "nested too deeply"),
        (msgspec.json.encode(fp32()) + b" x", "not valid"),
        (b"[]", "not valid"),
        ({}, "`inputs`"),
        (fp32(id=1), "id"),
        (fp32(parameters=1), "parameters"),
        (fp32(outputs=[{}]), "`name`"),
        ({"inputs": []}, "needs 'x'; missing: 'x'"),
        (bad(name="q"), "no input 'q'; it takes 'x'"),
        ({"inputs": [ONE, ONE]}, "'x' is given twice"),
        (bad(datatype="INT8"), "'x' must be FP32, got 'INT8'"),
        (bad(shape=[3]), "'x' must have 2 axes, as in \\[-1, 3\\], got 1"),
        (bad(shape=[1, 4]), "'x' must have shape \\[-1, 3\\].*got \\[1, 4\\]"),
        (bad(shape=[-1, 3]), "shape\\[0\\]"),
        (bad(shape=[1 << 40, 3]), "shape\\[0\\]"),
        (bad(shape=[1 << 31, 3]), "must have 6442450944 elements .* got 3"),
        (bad(shape=[1.5, 3]), "shape\\[0\\]"),
        (bad(shape=[True, 3]), "shape\\[0\\]"),
        (bad(shape=[2, 3]), "must have 6 elements for shape \\[2, 3\\], got 3"),
        (bad(data=None), "neither data nor the parameter binary_data_size"),
        (bad(parameters={"binary_data_size": 12}), "both data and the parameter binary_data_size"),
        (bad(data=None, parameters={"binary_data_size": 12}), "binary_data_size 12, left in the body are 0 bytes"),
        (bad(data=None, parameters={"binary_data_size": -1}), "binary_data_size"),
        (bad(parameters={"shared_memory_region": "a"}), "shared_memory_region of 'x'"),
        (fp32(outputs=[{"name": "q"}]), "no output 'q'.*it gives 'y'"),
        (fp32(outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (fp32(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification of 'y'"),
        (fp32(outputs=[{"name": "y", "parameters": {"shared_memory_region": "a"}}]), "shared_memory_region of 'y'"),
    ],
)
def test_bad_requests_are_400(client: testing.TestClient, served: FakeServing, content: object, sentence: str) -> None:
    """Each says what is wrong, is counted for the model, and the next good request is answered."""
    assert re.search(sentence, refused(infer(client, content), 400))
    assert served.counted == [("refused", "identity_fp32")]
    assert infer(client, fp32()).status_code == 200


@pytest.mark.parametrize("value", ["-1", "1e3", "x", "9999", "9" * 5000, "\u0661"])
def test_a_bad_header_length_is_400(client: testing.TestClient, value: str) -> None:
    """`Inference-Header-Content-Length` is a number within the body."""
    environ = {"HTTP_INFERENCE_HEADER_CONTENT_LENGTH": value}
    assert "Inference-Header-Content-Length" in refused(infer(client, fp32(), extras=environ), 400)


def test_every_byte_after_the_json_is_some_inputs(client: testing.TestClient) -> None:
    """Bytes that no input claims are refused."""
    head = msgspec.json.encode(fp32())
    result = infer(client, head + b"more", headers={"Inference-Header-Content-Length": str(len(head))})
    assert "4 bytes follow the last input" in refused(result, 400)


def test_a_body_over_the_bound_is_413(client: testing.TestClient) -> None:
    """The sentence has the bound, and the connection is closed, but only after the rest has been read."""
    result = infer(client, bytes(MAX_BODY + 1))
    assert f"at most {MAX_BODY} bytes" in refused(result, 413)
    assert result.headers["connection"] == "close"


def test_an_unknown_model_is_404(client: testing.TestClient, served: FakeServing) -> None:
    """It is counted for no model."""
    assert "nope" in refused(infer(client, fp32(), "nope"), 404)
    assert served.counted == [("refused", None)]


@pytest.mark.parametrize(("error", "retry"), [(BusyError("full"), "1"), (LateError("late"), None)])
def test_a_refusal_has_its_status(
    client: testing.TestClient, served: FakeServing, error: RefusalError, retry: str | None
) -> None:
    """What the server refuses keeps its sentence, its status and its `Retry-After`."""
    served.raises = error
    result = infer(client, fp32())
    assert str(error) == refused(result, error.status)
    assert retry == result.headers.get("retry-after")


def test_a_full_queue_is_503_before_anything_is_read(client: testing.TestClient, served: FakeServing) -> None:
    """Whoever would have to wait behind too many is told at once: no body is decoded and no model looked up for it."""
    served.full = BusyError("5 requests are waiting")
    result = infer(client, b"no JSON", "nope")
    assert "5 requests are waiting" == refused(result, 503)
    assert "1" == result.headers["retry-after"]
    assert served.counted == [("refused", None)]


def test_when_a_request_came(client: testing.TestClient, served: FakeServing) -> None:
    """A worker that knows when the head was there is believed, so that reading the body counts; else it is now."""
    infer(client, fp32(), extras={RECEIVED: 12345})
    assert 12345 == served.received
    before = time.monotonic_ns()
    infer(client, fp32())
    assert before <= served.received <= time.monotonic_ns()


def test_memory_that_ran_out_is_503(client: testing.TestClient, served: FakeServing) -> None:
    """A request that is too large for now is not a failure of the server."""
    served.raises = MemoryError()
    assert "memory" in refused(infer(client, fp32()), 503)


def test_a_defect_is_500_and_says_nothing_of_itself(
    client: testing.TestClient, served: FakeServing, caplog: pytest.LogCaptureFixture
) -> None:
    """The trace is in the log and nothing of it in the answer; the next request is answered."""
    served.raises = ZeroDivisionError(f"secret in {Path(__file__)}")
    with caplog.at_level(logging.ERROR, logger="gunicorn.error"):
        sentence = refused(infer(client, fp32()), 500)
    assert sentence == "the server failed on this request"
    assert "secret" in caplog.text
    assert served.counted == [("refused", "identity_fp32")]
    served.raises = None
    assert infer(client, fp32()).status_code == 200


def test_an_output_of_another_type_is_500(client: testing.TestClient, served: FakeServing) -> None:
    """What the model gives is not sent under a wrong name."""
    served.gives = {"y": np.zeros((1, 3), np.float64)}
    assert "output 'y' must be FP32" in refused(infer(client, fp32()), 500)


def test_statistics_are_summed_over_all_workers(client: testing.TestClient, served: FakeServing) -> None:
    """Counters of every slot are added; batch sizes that the slots hold in another order are matched."""
    index = served.board.model_index("two/1")
    assert index is not None
    for slot, sizes in enumerate([[(1, 3, 30), (4, 1, 40)], [(4, 2, 80)]]):
        row = served.board.slots[slot]["models"][index]
        for name in (
            "success",
            "success_ns",
            "fail",
            "fail_ns",
            "rows",
            "batches",
            "queue_ns",
            "input_ns",
            "infer_ns",
            "output_ns",
        ):
            row[name] = len(name) + slot
        row["last_ms"] = 1000 - slot
        row["sizes"][: len(sizes)] = sizes
    (stats,) = client.simulate_get("/v2/models/two/stats").json["model_stats"]
    assert (stats["name"], stats["version"], stats["last_inference"]) == ("two", "1", 1000)
    assert (stats["inference_count"], stats["execution_count"]) == (9, 15)
    assert stats["inference_stats"]["success"] == {"count": 15, "ns": 21}
    assert stats["inference_stats"]["queue"] == {"count": 15, "ns": 17}
    assert stats["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert [(entry["batch_size"], entry["compute_infer"]) for entry in stats["batch_stats"]] == [
        (1, {"count": 3, "ns": 30}),
        (4, {"count": 3, "ns": 120}),
    ]


def test_statistics_of_every_version(client: testing.TestClient) -> None:
    """All models, all versions of one, or one version."""
    names = {
        path: [(stats["name"], stats["version"]) for stats in client.simulate_get(path).json["model_stats"]]
        for path in ("/v2/models/stats", "/v2/models/identity_fp32/stats", "/v2/models/identity_fp32/versions/1/stats")
    }
    everything, both, first = names.values()
    assert len(everything) == len(DTYPES) + 2
    assert both == [("identity_fp32", "1"), ("identity_fp32", "2")]
    assert first == [("identity_fp32", "1")]


def test_the_index_has_every_version(client: testing.TestClient) -> None:
    """With and without a body; a body that is wrong is refused."""
    for content in ("", "{}", '{"ready": true}'):
        index = client.simulate_post("/v2/repository/index", body=content).json
        assert {"name": "identity_fp32", "version": "2", "state": "READY", "reason": ""} in index
        assert len(index) == len(DTYPES) + 2
    refused(client.simulate_post("/v2/repository/index", body='{"ready": 1}'), 400)


@given(st.binary(max_size=200), st.sampled_from([None, "0", "5", "20", "-1"]), st.sampled_from(["", "gzip", "deflate"]))
@settings(max_examples=300, deadline=None)
def test_any_body_is_answered_or_refused(shared: testing.TestClient, content: bytes, length: str | None, coding: str) -> None:
    """Whatever bytes come with whatever headers, the answer is a result or an error of the contract, never 500."""
    headers = {"Content-Encoding": coding} | ({"Inference-Header-Content-Length": length} if length else {})
    for raw in (content, msgspec.json.encode(fp32())[: len(content)] + content):
        result = infer(shared, raw, headers=headers)
        assert result.status_code == 200 or refused(result, 400)
