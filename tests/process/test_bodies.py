"""Bodies at the bound, over it, and announced: whoever sends too much reads why, however long they go on sending."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterator

import pytest

from tests.clients import Client, get, head
from tests.models import identity, put
from tests.server import PATIENCE, Server

LIMIT = 1 << 20
BLOCK = bytes(1 << 16)
FAR_OVER = 4 * LIMIT
CHUNKED = get("/v2/models/m/infer", "Transfer-Encoding: chunked", method="POST")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one worker and one model."""
    root = tmp_path_factory.mktemp("models")
    put(root, "m", identity("FP64", 1))
    with Server(root, max_body=LIMIT) as running:
        yield running


def _padded(size: int) -> bytes:
    """A good request's body of `size` bytes."""
    content = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,1],"data":[7]}]}'
    return content + b" " * (size - len(content))


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // len(BLOCK)):
        yield b"%x\r\n%s\r\n" % (len(BLOCK), BLOCK)
    yield b"0\r\n\r\n"


def _too_large(client: Client) -> None:
    """The next answer is 413, and nothing but the end comes after it, in order."""
    answer = client.read()
    assert answer.status == 413
    assert f"at most {LIMIT} bytes (WARMFORK_MAX_BODY)" in answer.error
    assert answer.closes
    assert client.ends()


@pytest.mark.parametrize("kind", ["sized", "chunked"])
def test_at_the_bound(server: Server, kind: str) -> None:
    """As many bytes as may be are served, one more is refused."""
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        content = _padded(size)
        request = head("m", size) + content if kind == "sized" else CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (size, content)
        with Client(server) as client:
            assert client.ask(request).status == status


def test_a_declared_length(server: Server) -> None:
    """The length alone is enough to refuse: the answer waits for not a byte of the body."""
    with Client(server) as client:
        client.send(head("m", LIMIT + 1))
        assert client.read().status == 413


def test_a_client_that_sends_it_all(server: Server) -> None:
    """A client that first sends four times the bound and only then looks for an answer finds it, and no reset connection."""
    with Client(server) as client:
        client.send(head("m", FAR_OVER), *[BLOCK] * (FAR_OVER // len(BLOCK)))
        _too_large(client)


def test_a_client_that_sends_it_all_in_chunks(server: Server) -> None:
    """The same where no length was declared, which only shows while it is read."""
    with Client(server) as client:
        client.send(CHUNKED, *_chunks(FAR_OVER))
        _too_large(client)


def _pour(client: Client, other: Client) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        client.send(BLOCK)
        assert other.ask(get("/v2/health/live")).status == 200


def test_a_client_that_never_ends(server: Server) -> None:
    """Who goes on and on is heard out for a while and then cut off; meanwhile others are served."""
    with Client(server) as client, Client(server) as other:
        client.send(head("m", 1 << 50))
        with pytest.raises(ConnectionError):
            _pour(client, other)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body(server: Server, coding: str) -> None:
    """What comes out is bounded, and not what it takes on the wire: at the bound it is served, over it refused."""
    pack = gzip.compress if coding == "gzip" else zlib.compress
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (300 * LIMIT, 413)):
        content = pack(_padded(size))
        with Client(server) as client:
            answer = client.ask(head("m", len(content), f"Content-Encoding: {coding}") + content)
            assert answer.status == status
            if not answer.closes:  # all of it has been read
                assert client.ask(head("m", 100) + _padded(100)).values == [7.0]


def test_expect_of_too_much(server: Server) -> None:
    """Who asks before sending is told at once, with no 100 before it."""
    with Client(server) as client:
        client.send(head("m", LIMIT + 1, "Expect: 100-continue"))
        _too_large(client)


def test_expect(server: Server) -> None:
    """Who asks before sending a good body is told to go on, then answered; so is who did not wait, and whatever follows."""
    content = _padded(100)
    with Client(server) as client:
        for _ in range(2):
            client.send(head("m", len(content), "Expect: 100-continue"))
            assert client.read().status == 100
            assert client.ask(content).values == [7.0]
        client.send(head("m", len(content), "Expect: 100-continue") + content)
        answer = client.read()
        if answer.status == 100:
            answer = client.read()
        assert answer.values == [7.0]
        assert client.ask(head("m", len(content)) + content).values == [7.0]
