"""Reading a body: whole or refused, sized or chunked, packed or not, and never more than the bound."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from typing import Any

import pytest
from gunicorn.http.errors import InvalidChunkSize, NoMoreData
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api import body
from server.refusals import BadInputError, SlowError, TooLargeError
from server.worker.content import Content

LIMIT = 1000


class Dribble(io.RawIOBase):
    """A source that gives at most a few bytes at once, and may end in an exception."""

    def __init__(self, content: bytes, step: int = 3, error: Exception | None = None) -> None:
        """Give `content` by `step` bytes, then raise `error`."""
        self.content = io.BytesIO(content)
        self.step = step
        self.error = error

    def read(self, size: int = -1) -> bytes:
        """Give the next bytes."""
        part = self.content.read(min(size, self.step))
        if not part and self.error:
            raise self.error
        return part


def sized(content: bytes, length: int | None = None, source: Any = None, **headers: str) -> dict[str, Any]:
    """An environment of a body with `Content-Length`."""
    length = len(content) if length is None else length
    return {"CONTENT_LENGTH": str(length), "wsgi.input": source or io.BytesIO(content), **headers}


def chunked(source: Any, **headers: str) -> dict[str, Any]:
    """An environment of a chunked body."""
    return {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": source, **headers}


@given(st.binary(max_size=LIMIT), st.integers(1, 50), st.sampled_from(["identity", "gzip", "deflate", "members"]))
def test_a_body_is_read_whole(content: bytes, step: int, coding: str) -> None:
    """However it is cut and packed, what was sent is what is read."""
    half = len(content) // 2
    packed = {
        "identity": content,
        "gzip": gzip.compress(content),
        "deflate": zlib.compress(content),
        "members": gzip.compress(content[:half]) + gzip.compress(content[half:]),
    }[coding]
    named = coding.replace("members", "GZIP")
    for environ in (
        sized(packed, source=Dribble(packed, step), HTTP_CONTENT_ENCODING=named),
        chunked(Dribble(packed, step), HTTP_CONTENT_ENCODING=named),
    ):
        assert content == body.read(environ, max(LIMIT, len(packed)))


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "x-gzip"]))
@settings(max_examples=200)
def test_any_packed_bytes_are_read_or_refused(content: bytes, coding: str) -> None:
    """Bytes that claim to be packed give a body or a refusal, also where they begin well."""
    for raw in (content, gzip.compress(b"abc", mtime=0) + content, zlib.compress(b"abc") + content):
        try:
            read = body.read(sized(raw, HTTP_CONTENT_ENCODING=coding), LIMIT)
        except (BadInputError, TooLargeError):
            continue
        assert len(read) <= LIMIT


def test_no_body_is_an_empty_one() -> None:
    """A request without `Content-Length` and without chunks has no body, and none is waited for."""
    assert body.read({"wsgi.input": Dribble(b"", error=AssertionError("read"))}, LIMIT) == b""


def test_an_oversize_body_is_refused_unread() -> None:
    """The length alone decides; what is drained later is no more than twice the bound."""
    source = io.BytesIO(bytes(10 * LIMIT))
    with pytest.raises(body.TooLargeBodyError, match=r"at most 1000 bytes .*, got 10000 bytes") as caught:
        body.read(sized(b"", 10 * LIMIT, source), LIMIT)
    assert source.tell() == 0
    caught.value.drain()
    assert source.tell() == 2 * LIMIT


def test_an_endless_chunked_body_is_refused() -> None:
    """A chunked body is bounded while it is read."""
    source = Dribble(bytes(10 * LIMIT), 100)
    with pytest.raises(TooLargeError, match=r"at most 1000 bytes .*, got more than 1000 bytes"):
        body.read(chunked(source), LIMIT)
    assert source.content.tell() == LIMIT + 100


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused(coding: str) -> None:
    """What comes out is bounded, not only what goes in."""
    raw = gzip.compress(bytes(100_000_000)) if coding == "gzip" else zlib.compress(bytes(100_000_000))
    with pytest.raises(TooLargeError, match=r"at most 1000000 bytes .*unpacked"):
        body.read(sized(raw, HTTP_CONTENT_ENCODING=coding), 1_000_000)


def test_the_bound_itself_is_allowed() -> None:
    """A body of exactly the bound passes, one byte more does not, packed or not."""
    exact, over = bytes(LIMIT), bytes(LIMIT + 1)
    assert body.read(sized(exact), LIMIT) == exact
    assert body.read(sized(gzip.compress(exact), HTTP_CONTENT_ENCODING="gzip"), LIMIT) == exact
    assert body.read(chunked(io.BytesIO(exact)), LIMIT) == exact
    for environ in (
        sized(over),
        sized(gzip.compress(over), HTTP_CONTENT_ENCODING="gzip"),
        chunked(io.BytesIO(over)),
    ):
        with pytest.raises(TooLargeError):
            body.read(environ, LIMIT)


def test_many_members_cost_little() -> None:
    """A body of very many tiny gzip members is refused soon."""
    raw = gzip.compress(b"", mtime=0) * 200_000
    before = time.process_time()
    with pytest.raises(BadInputError, match="more than 256 members"):
        body.read(sized(raw, HTTP_CONTENT_ENCODING="gzip"), len(raw))
    assert time.process_time() - before < 1


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (sized(b"abc", 10), "body ended after 3 of 10 bytes"),
        (sized(b"abc", 10, Dribble(b"abc", error=NoMoreData(b""))), "could not be read"),
        (sized(b"abc", 10, Dribble(b"abc", error=ConnectionResetError())), "could not be read"),
        (chunked(Dribble(b"abc", error=InvalidChunkSize(b"x"))), "could not be read"),
        ({"CONTENT_LENGTH": "-1", "wsgi.input": io.BytesIO()}, "must be a number of bytes, got '-1'"),
        ({"CONTENT_LENGTH": "9" * 5000, "wsgi.input": io.BytesIO()}, "must be a number of bytes"),
    ],
)
def test_a_body_that_ends_wrongly_is_refused(environ: dict[str, Any], sentence: str) -> None:
    """Short, broken and mislabelled bodies are 400, and the connection is known to be of no more use."""
    with pytest.raises(BadInputError, match=sentence) as caught:
        body.read(environ, LIMIT)
    assert isinstance(caught.value, body.CLOSING)


@pytest.mark.parametrize("make", [sized, chunked])
def test_a_body_that_comes_too_slowly_is_refused(make: Any) -> None:
    """A worker that waited for long enough says so: 408, and the connection is known to be of no more use."""
    slow = Dribble(b"abc", error=TimeoutError("the client sent nothing for 5 s"))
    with pytest.raises(SlowError, match=r"^the client sent nothing for 5 s$") as caught:
        body.read(sized(b"abc", 10, slow) if make is sized else chunked(slow), LIMIT)
    assert isinstance(caught.value, body.CLOSING)
    assert 408 == caught.value.status


def test_a_body_in_memory_is_not_copied() -> None:
    """What the worker has received already is given as it lies there; what is packed is unpacked from there."""
    view = memoryview(bytearray(b"as it came"))
    came = body.read(sized(b"", len(view), Content(view)), LIMIT)

    assert isinstance(came, memoryview)
    view[0:2] = b"AS"
    assert b"AS it came" == came.tobytes()
    packed = memoryview(gzip.compress(b"packed", mtime=0))
    assert b"packed" == body.read(sized(b"", len(packed), Content(packed), HTTP_CONTENT_ENCODING="gzip"), LIMIT)


def test_a_body_in_memory_that_ended_early() -> None:
    """What is missing of a body that the worker gave up on is said as for any other."""
    with pytest.raises(BadInputError, match=r"^body ended after 3 of 10 bytes$") as caught:
        body.read(sized(b"", 10, Content(memoryview(b"abc"))), LIMIT)
    assert isinstance(caught.value, body.CLOSING)


@pytest.mark.parametrize(
    ("raw", "coding", "sentence"),
    [
        (b"abc", "br", "must be gzip, deflate or identity, got 'br'"),
        (b"abc", "gzip, gzip", "must be gzip, deflate or identity"),
        (b"abc", "gzip", "not gzip"),
        (b"", "gzip", "ended in the middle"),
        (gzip.compress(b"abc", mtime=0)[:-1], "gzip", "ended in the middle"),
        (gzip.compress(b"abc", mtime=0)[:-5] + b"?" * 5, "gzip", "not gzip"),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", "not gzip"),
        (zlib.compress(b"abc")[:-1], "deflate", "ended in the middle"),
        (zlib.compress(b"abc") + b"more", "deflate", "not deflate"),
    ],
)
def test_bad_packing_is_refused(raw: bytes, coding: str, sentence: str) -> None:
    """Unknown codings and packed bodies that are cut, broken or followed by something are 400."""
    with pytest.raises(BadInputError, match=sentence):
        body.read(sized(raw, HTTP_CONTENT_ENCODING=coding), LIMIT)
