"""Text over HTTP: the same answer alone, in a batch and from many clients, no text cold, every bad one refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from tests.server import Server
from tests.torch_models import BUCKETS, put_text, sentence, vector

LONGEST = BUCKETS[-1] - 2
"""Words that fit into the longest bucket."""
TEXTS = [sentence(count, 3 * count) for count in (1, 2, 3, 6, 7, LONGEST, LONGEST + 1, 50)]
ODD = ["", " ", "\t\n", "Straße, naïve! 猫 👋🏽", "a" * 60_000, "\0", "the\0dog", "[PAD] [PAD]", "[CLS][SEP]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One model that cuts what is too long, and one that refuses it."""
    models = tmp_path_factory.mktemp("text")
    put_text(models, "cuts")
    put_text(models, "strict", "truncate = false\nmax_bytes = 1000")
    with Server(models, workers=2) as running:
        yield running


def ask(server: Server, texts: Sequence[str], model: str = "cuts") -> tuple[int, Any]:
    """One request of JSON: the vectors, or the sentence of a refusal."""
    status, given = server.infer(model, {"text": ("BYTES", list(texts))})
    return status, np.reshape(given["outputs"][0]["data"], (-1, 4)) if status == 200 else given["error"]


def ask_binary(server: Server, texts: Sequence[bytes], model: str = "cuts") -> tuple[int, Any]:
    """The same with the texts as bytes behind the JSON."""
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    given = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, _, content = server.request("POST", f"/v2/models/{model}/infer", head + raw, headers)
    body = json.loads(content)
    return status, np.reshape(body["outputs"][0]["data"], (-1, 4)) if status == 200 else body["error"]


def close(given: Any, texts: Sequence[str]) -> bool:
    """Whether `given` are the vectors of `texts`."""
    return bool(np.allclose(given, [vector(text) for text in texts], rtol=1e-5))


def test_metadata(server: Server) -> None:
    """Clients see one input, a text a row, and the model's output."""
    given = json.loads(server.request("GET", "/v2/models/cuts")[2])

    assert given["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert given["outputs"] == [{"name": "vector", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text.split())}-words")
def test_alone(server: Server, text: str) -> None:
    """A text alone, of any length, has the vector of its words: padding and its mask change nothing, what is cut is cut."""
    for status, given in (ask(server, [text]), ask_binary(server, [text.encode()])):
        assert status == 200, given
        assert close(given, [text])


def test_in_batches(server: Server) -> None:
    """Beside others, shorter and longer ones, and in a batch that padding rows fill up, each has the vector it has alone."""
    for begin in range(len(TEXTS)):
        for rows in (2, 3, 4):
            batch = [TEXTS[(begin + 3 * row) % len(TEXTS)] for row in range(rows)]
            status, given = ask(server, batch)
            assert status == 200, given
            assert close(given, batch)


def test_eight_clients(server: Server) -> None:
    """From eight clients at once, each its own texts over and over: everybody gets their own answers."""

    def client(number: int) -> list[bool]:
        found = []
        for turn in range(10):
            batch = [sentence(1 + (number + 2 * turn + row) % 20, number) for row in range(1 + turn % 4)]
            status, given = ask(server, batch)
            found.append(status == 200 and close(given, batch))
        return found

    with ThreadPoolExecutor(8) as pool:
        assert [[True] * 10] * 8 == list(pool.map(client, range(8)))


def test_tritonclient(server: Server) -> None:
    """The reference client, unmodified, with its texts as bytes and as JSON."""
    client = triton.InferenceServerClient(f"{server.host}:{server.port}")
    for binary in (True, False):
        tensor = triton.InferInput("text", [3], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS[:3]], object), binary_data=binary)
        given = client.infer("cuts", [tensor], outputs=[triton.InferRequestedOutput("vector", binary_data=binary)])
        assert close(given.as_numpy("vector"), TEXTS[:3])
    client.close()


def test_no_text_is_cold(server: Server) -> None:
    """Texts of no word to three times the longest bucket, in every number of rows: no worker counts a cold dispatch."""
    for words in range(3 * BUCKETS[-1]):
        assert ask(server, [sentence(words)] * (1 + words % 4))[0] == 200

    workers = server.status()["workers"]
    assert sum(worker["requests"] for worker in workers) > 0
    assert [0] * len(workers) == [worker["cold_dispatches"] for worker in workers]
    buckets = {f"batch={rows},length={length}" for rows in (1, 4) for length in BUCKETS}
    assert all(set(worker["models"]["cuts/1"]) == buckets for worker in workers)


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_texts(server: Server, text: str) -> None:
    """No word, no letter, one endless word, control characters, the tokenizer's own words: a vector, never a NaN."""
    for status, given in (ask(server, [text]), ask(server, [text, *TEXTS[:2]]), ask_binary(server, [text.encode()])):
        assert status == 200, given
        assert np.isfinite(given).all()


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "10-mb": (
        "cuts",
        b"the dog " * (10 << 17),
        r"input 'text', row 1: a text may have 65536 bytes \(text.max_bytes\), has 10485760",
    ),
    "a-byte-too-many": ("strict", b"a" * 1001, r"input 'text', row 1: a text may have 1000 bytes \(text.max_bytes\), has 1001"),
    "not-utf-8": ("cuts", b"caf\xe9", r"input 'text', row 1: not UTF-8 \(byte 3: unexpected end of data\)"),
    "lone-surrogate": ("cuts", b"\xed\xa0\x80", r"input 'text', row 1: not UTF-8 \(byte 0: invalid continuation byte\)"),
    "too-long": ("strict", sentence(15).encode(), "input 'text', row 1: a text may have 16 tokens, has 17"),
}
"""Name: the model, the second of two texts, and the sentence."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused(server: Server, name: str) -> None:
    """400, the row and the bound named; the next request is answered, and none of it was cold or an error of the model's."""
    model, text, sentence_of_refusal = REFUSED[name]

    status, said = ask_binary(server, [b"the dog", text], model)

    assert (status, bool(re.fullmatch(sentence_of_refusal, said))) == (400, True), said
    assert close(ask(server, TEXTS[:2], model)[1], TEXTS[:2])


def test_just_as_long_as_it_may_be(server: Server) -> None:
    """A text that fills the longest bucket, or has as many bytes as are allowed, is served where nothing is cut."""
    for text in (sentence(LONGEST), "a" * 1000, "é" * 500):
        status, given = ask(server, [text], "strict")
        assert status == 200, given
        assert close(given, [text])
