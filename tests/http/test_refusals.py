"""The contract's refusals, line by line, over real sockets: the status, the sentence, and that the next request is answered."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.server import Server

INFER = "/v2/models/identity_fp32/infer"
LENGTHS, FREE = "/v2/models/lengths/infer", "/v2/models/free/infer"
BINARY = "Inference-Header-Content-Length"


def request(**change: object) -> bytes:
    """A request to an FP32 identity, its one input changed; None takes a key out."""
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **change}
    return json.dumps({"inputs": [{key: value for key, value in given.items() if value is not None}]}).encode()


GOOD = request()


@dataclass(frozen=True)
class Refusal:
    """One line: what is sent, and what must come back."""

    name: str
    status: int
    sentence: str
    body: bytes | None = GOOD
    path: str = INFER
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


REFUSALS = [
    # Malformed JSON.
    Refusal("no-body", 400, "the request is not valid", b""),
    Refusal("cut-json", 400, "the request is not valid", GOOD[:-5]),
    Refusal("trailing-bytes", 400, "trailing characters", GOOD + b"}"),
    Refusal("byte-order-mark", 400, "the request is not valid", b"\xef\xbb\xbf" + GOOD),
    Refusal("not-utf-8", 400, "not UTF-8", b'{"inputs": [], "id": "\xff"}'),
    Refusal("lone-surrogate", 400, "the request is not valid", b'{"inputs": [], "id": "\\ud800"}'),
    Refusal("nan", 400, "the request is not valid", GOOD.replace(b"1, 2", b"NaN, 2")),
    Refusal("infinity", 400, "the request is not valid", GOOD.replace(b"1, 2", b"-Infinity, 2")),
    Refusal("1e999", 400, "data of input 'x'.*out of range", GOOD.replace(b"1, 2", b"1e999, 2")),
    Refusal("nested-100000", 400, "nested too deeply", GOOD.replace(b"[1, 2, 3]", b"[" * 100_000 + b"]" * 100_000)),
    Refusal("nested-elsewhere", 400, "nested too deeply", b'{"q":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    Refusal("not-an-object", 400, "Expected `object`, got `array`", b"[]"),
    # Wrong shape, type or element count.
    Refusal("no-shape", 400, "`shape`", request(shape=None)),
    Refusal("rank", 400, "'x' must have 2 axes.*got 1", request(shape=[3])),
    Refusal("fixed-axis", 400, r"'x' must have shape \[-1, 3\].*got \[1, 4\]", request(shape=[1, 4])),
    Refusal("negative-axis", 400, r"shape\[0\]", request(shape=[-1, 3])),
    Refusal("huge-axis", 400, r"shape\[0\]", request(shape=[1 << 70, 3])),
    Refusal("huge-product", 400, "must have 6442450944 elements", request(shape=[1 << 31, 3])),
    Refusal("datatype", 400, "'x' must be FP32, got 'INT32'", request(datatype="INT32")),
    Refusal("no-such-datatype", 400, "'x' must be FP32, got 'FP8'", request(datatype="FP8")),
    Refusal("too-few", 400, r"must have 6 elements for shape \[2, 3\], got 3", request(shape=[2, 3])),
    Refusal("too-many", 400, r"must have 3 elements for shape \[1, 3\], got 4", request(data=[1, 2, 3, 4])),
    Refusal("ragged", 400, "flat or nested as its shape", request(shape=[2, 3], data=[[1, 2, 3, 4], [5, 6]])),
    Refusal("text-for-number", 400, "data of input 'x'.*got `str`", request(data=[1, 2, "3"])),
    Refusal("null-for-number", 400, "data of input 'x'.*got `null`", request(data=[1, 2, None])),
    Refusal("out-of-range", 400, "FP32 cannot hold", request(data=[1, 2, 1e39])),
    Refusal("int8-128", 400, "INT8 cannot hold", request(datatype="INT8", data=[1, 2, 128]), "/v2/models/identity_int8/infer"),
    Refusal("bool-for-int", 400, "got `bool`", request(datatype="INT8", data=[1, 2, True]), "/v2/models/identity_int8/infer"),
    Refusal("int-for-bool", 400, "got `int`", request(datatype="BOOL", data=[0, 1, 1]), "/v2/models/identity_bool/infer"),
    Refusal("number-for-bytes", 400, "got `int`", request(datatype="BYTES"), "/v2/models/identity_bytes/infer"),
    # Unknown or missing input; outputs that are not there.
    Refusal("unknown-input", 400, "no input 'q'; it takes 'x'", request(name="q")),
    Refusal("no-input", 400, "missing: 'x'", b'{"inputs": []}'),
    Refusal("missing-input", 400, "missing: 'b'", request(name="a"), "/v2/models/two/infer"),
    Refusal("twice", 400, "'x' is given twice", json.dumps({"inputs": json.loads(GOOD)["inputs"] * 2}).encode()),
    Refusal("unknown-output", 400, "no output 'q'.*gives 'y'", GOOD[:-1] + b', "outputs": [{"name": "q"}]}'),
    Refusal("shared-memory", 400, "shared_memory_region of 'x'", request(parameters={"shared_memory_region": "a"})),
    Refusal(
        "classification",
        400,
        "classification of 'y'",
        GOOD[:-1] + b', "outputs": [{"name": "y", "parameters": {"classification": 1}}]}',
    ),
    # The binary tensor data extension.
    Refusal("no-data", 400, "neither data nor", request(data=None)),
    Refusal("both-data", 400, "both data and", request(parameters={"binary_data_size": 12})),
    Refusal(
        "no-bytes", 400, "binary_data_size 12, left in the body are 0", request(data=None, parameters={"binary_data_size": 12})
    ),
    Refusal("bytes-left", 400, "4 bytes follow", GOOD + b"more", headers={BINARY: str(len(GOOD))}),
    Refusal("header-length", 400, BINARY, headers={BINARY: str(len(GOOD) + 1)}),
    Refusal("header-negative", 400, BINARY, headers={BINARY: "-1"}),
    Refusal("header-word", 400, BINARY, headers={BINARY: "all"}),
    Refusal("lone-size", 400, "a multiple of 12 bytes, got 7", b"1234567", headers={BINARY: "0"}),
    Refusal("lone-of-two", 400, "takes 'a', 'b'", bytes(12), "/v2/models/two/infer", headers={BINARY: "0"}),
    # Content codings.
    Refusal("not-gzip", 400, "not gzip", headers={"Content-Encoding": "gzip"}),
    Refusal("cut-gzip", 400, "ended in the middle", gzip.compress(GOOD)[:-3], headers={"Content-Encoding": "gzip"}),
    Refusal("brotli", 400, "must be gzip, deflate or identity, got 'br'", headers={"Content-Encoding": "br"}),
    # Unknown model or version; addresses and methods that are not there.
    Refusal("unknown-model", 404, "nope", path="/v2/models/nope/infer"),
    Refusal("unknown-version", 404, "version", path="/v2/models/two/versions/7/infer"),
    Refusal("version-zero", 404, "version", path="/v2/models/two/versions/0/infer"),
    Refusal("version-word", 404, "version", path="/v2/models/two/versions/latest/infer"),
    Refusal("version-endless", 404, "version", path=f"/v2/models/two/versions/{'1' * 3000}/infer"),
    Refusal("empty-model", 404, "", path="/v2/models//infer"),
    Refusal("slash-in-model", 404, "", path="/v2/models/two%2Finfer/infer"),
    Refusal("unknown-metadata", 404, "nope", None, "/v2/models/nope", "GET"),
    Refusal("unknown-ready", 404, "nope", None, "/v2/models/nope/ready", "GET"),
    Refusal("unknown-stats", 404, "nope", None, "/v2/models/nope/stats", "GET"),
    Refusal("no-such-address", 404, "/v3", None, "/v3", "GET"),
    Refusal("load", 404, "", b"{}", "/v2/repository/models/two/load"),
    Refusal("get-infer", 405, "allowed: POST", None, method="GET"),
    Refusal("delete-model", 405, "allowed: GET, HEAD", None, "/v2/models/two", "DELETE"),
    Refusal("made-up-method", 405, "BREW", None, method="BREW"),
    # A body over the bound, packed.
    Refusal("bomb", 413, "at most 67108864 bytes", gzip.compress(bytes(65 << 20)), headers={"Content-Encoding": "gzip"}),
    # A shape that the model's limits forbid.
    Refusal("length", 400, "axis 'width' must be at most 8, got 9", request(shape=[1, 9], data=[0] * 9), LENGTHS),
    Refusal("length-split", 400, "axis 'width' must be at most 8, got 9", request(shape=[9, 9], data=[0] * 81), LENGTHS),
    Refusal("no-rows", 400, r"\'x\' must have at least 1 along every axis, got shape \[0, 3\]", request(shape=[0, 3], data=[])),
    # Rows of a model with an axis that nobody declared can't be mixed, so what is over the largest batch is not split.
    Refusal("batch", 400, "axis 'batch' must be at most 8, got 9", request(shape=[9, 3], data=[0] * 27), FREE),
    # The model raised.
    Refusal("raises", 500, "^model 'raises' failed$", request(data=[13, 2, 3]), "/v2/models/raises/infer"),
]


def exchange(connection: http.client.HTTPConnection, refusal: Refusal) -> tuple[http.client.HTTPResponse, Any]:
    """Send one line of the table."""
    connection.request(refusal.method, refusal.path, refusal.body, refusal.headers)
    response = connection.getresponse()
    return response, json.loads(response.read())


def answered(connection: http.client.HTTPConnection) -> bool:
    """Whether a good request gets its result."""
    response, content = exchange(connection, Refusal("good", 200, ""))
    return response.status == 200 and content["outputs"][0]["data"] == [1, 2, 3]


def connect(server: Server) -> http.client.HTTPConnection:
    """A fresh connection."""
    return http.client.HTTPConnection(server.host, server.port, timeout=30)


def serves_on(server: Server, used: http.client.HTTPConnection) -> bool:
    """Whether the server answers on a fresh connection, and on the one that was used if it was left open."""
    fresh = connect(server)
    try:
        return answered(fresh) and (used.sock is None or answered(used))
    finally:
        fresh.close()


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_refusal(server: Server, refusal: Refusal) -> None:
    """The status and the sentence of the contract, in JSON, with no trace and no path; and the next request is answered."""
    connection = connect(server)
    try:
        response, content = exchange(connection, refusal)
        assert refusal.status == response.status, content
        assert response.headers["Content-Type"] == "application/json"
        assert list(content) == ["error"]
        assert re.search(refusal.sentence, content["error"]), content
        assert "Traceback" not in content["error"]
        assert "/secret/" not in content["error"]
        assert (refusal.status == 405) == ("Allow" in response.headers)
        assert serves_on(server, connection)
    finally:
        connection.close()


@pytest.mark.parametrize("path", [INFER, LENGTHS])
def test_more_rows_than_a_batch(server: Server, path: str) -> None:
    """More rows than the largest batch are no reason to refuse where rows are independent: they run in parts."""
    connection = connect(server)
    try:
        data = list(range(27))
        response, content = exchange(connection, Refusal("split", 200, "", request(shape=[9, 3], data=data), path))
        assert response.status == 200
        assert content["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [9, 3], "data": data}]
    finally:
        connection.close()


def raw(server: Server, *parts: bytes) -> tuple[int, Any]:
    """Send bytes, say that no more will come, and read the answer."""
    with socket.create_connection((server.host, server.port), timeout=30) as sock:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.status, json.loads(response.read())


HEAD = f"POST {INFER} HTTP/1.1\r\nHost: test\r\n".encode()


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((HEAD, b"Content-Length: 100\r\n\r\n", b"7 bytes"), "body ended after 7 of 100 bytes"),
        ((HEAD, b"Content-Length: 100\r\n\r\n"), "body ended after 0 of 100 bytes"),
        ((HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n12345\r\n"), "could not be read"),
        ((HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"50\r\n12345"), "could not be read"),
        ((HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"xyz\r\n12345\r\n0\r\n\r\n"), "could not be read"),
    ],
    ids=["length", "length-nothing", "chunks-end", "chunk-ends", "chunk-size"],
)
def test_a_truncated_body_is_400(server: Server, parts: tuple[bytes, ...], sentence: str) -> None:
    """A body that ends before its end, sized or chunked, is refused and not run."""
    status, content = raw(server, *parts)
    assert status == 400
    assert sentence in content["error"]
    connection = connect(server)
    try:
        assert answered(connection)
    finally:
        connection.close()


def test_a_chunked_body_is_read(server: Server) -> None:
    """A good request in chunks is answered like any other."""
    connection = connect(server)
    try:
        connection.request(
            "POST", INFER, iter([GOOD[:10], GOOD[10:]]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        response = connection.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["outputs"][0]["data"] == [1, 2, 3]
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_over_the_bound_is_413(server: Server, *, chunked: bool) -> None:
    """A client that sends one MiB more than it may reads its answer, and not a reset connection."""
    block = bytes(1 << 20)
    connection = connect(server)
    try:
        headers = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(65 << 20)}
        connection.request("POST", INFER, (block for _ in range(65)), headers=headers, encode_chunked=chunked)
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status == 413
        assert "at most 67108864 bytes (WARMFORK_MAX_BODY)" in content["error"]
        assert serves_on(server, connection)
    finally:
        connection.close()


def test_an_oversize_body_is_refused_before_it_is_sent(server: Server) -> None:
    """The answer to a length that is too large does not wait for the body."""
    with socket.create_connection((server.host, server.port), timeout=30) as sock:
        sock.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 413
        assert "99999999999" in json.loads(response.read())["error"]
