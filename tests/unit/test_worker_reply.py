"""Answers beside those that gunicorn's own `Response` writes for the same app: the same status line, fields and framing."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import (  # type: ignore[attr-defined] # the stubs leave them out
    InvalidResponseHeader,
    InvalidResponseHeaderName,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import Response
from hypothesis import given, settings
from hypothesis import strategies as st

from server.worker.reply import Reply

Fields = Sequence[tuple[str, str]]
REFUSED = (InvalidResponseHeader, InvalidResponseHeaderName, ValueError, TypeError, AssertionError)


def ours(status: str, fields: Fields, body: Sequence[bytes], *, closes: bool = False) -> bytes:
    """What we send."""
    written: list[bytes] = []
    reply = Reply(written.append, lambda: closes)
    reply.start(status, fields)
    if len(body) == 1 and isinstance(body, list):
        reply.body(body[0], last=True)
    else:
        for part in body:
            reply.body(part)
        reply.end()
    return b"".join(written)


def theirs(status: str, fields: Fields, body: Sequence[bytes], *, closes: bool = False) -> bytes:
    """What gunicorn sends to a client of HTTP/1.1."""
    here, there = socket.socketpair()
    with here, there:
        request: Any = Request(Config(), IterUnreader([b"GET / HTTP/1.1\r\n\r\n"]), ("", 0))
        response: Any = Response(request, there, Config())
        if closes:
            response.force_close()
        response.start_response(status, fields)
        for part in body:
            response.write(part)
        response.close()
        there.close()
        return b"".join(iter(lambda: here.recv(1 << 16), b""))


def undated(answer: bytes) -> bytes:
    """An answer without the moment at which it was made."""
    return re.sub(rb"\r\nDate: [^\r]*", b"", answer, count=1)


STATUSES = ["200 OK", "204 No Content", "304 Not Modified", "404 Not Found", "500 Internal Server Error", "299 Made Up"]
BODIES: list[list[bytes]] = [[b"hello"], [], [b""], [b"he", b"", b"llo"], [b"", b""], [b"a" * 70_000]]


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("body", [BODIES[0], *BODIES[3:4], BODIES[5]], ids=["one", "parts", "large"])
@pytest.mark.parametrize("status", [status for status in STATUSES if status[0] != "3"])
def test_with_a_length(status: str, body: list[bytes], closes: bool) -> None:  # noqa: FBT001
    """Where the app says a length, both answers are the same to the byte, but for their dates."""
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(sum(map(len, body)))), ("X-A", " a\t"), ("x-a", "b")]
    assert undated(theirs(status, fields, body, closes=closes)) == undated(ours(status, fields, body, closes=closes))


@pytest.mark.parametrize("body", BODIES[3:5], ids=["parts", "nothing"])
def test_without_a_length(body: list[bytes]) -> None:
    """Where nobody knows the length, it is sent in the same chunks."""
    fields = [("Content-Type", "text/plain")]
    expected = theirs("200 OK", fields, body)
    assert b"Transfer-Encoding: chunked" in expected
    assert undated(expected) == undated(ours("200 OK", fields, body))


@pytest.mark.parametrize("body", [[b"hello"], [b""]])
def test_a_length_that_we_know(body: list[bytes]) -> None:
    """A body that is all there has a length, though the app did not say it: nothing of chunks, one piece to send."""
    written: list[bytes] = []
    reply = Reply(written.append, lambda: False)
    reply.start("200 OK", [("Content-Type", "text/plain")])
    reply.body(body[0], last=True)
    assert 1 == len(written)
    head, _, rest = written[0].partition(b"\r\n\r\n")
    assert body[0] == rest
    assert b"\r\nContent-Length: %d" % len(body[0]) in head
    assert b"chunked" not in head


@pytest.mark.parametrize("status", ["204 No Content", "100 Continue", "304 Not Modified"])
@pytest.mark.parametrize("body", [[b"hello"], [], [b"he", b"llo"]])
def test_answers_without_a_body(status: str, body: list[bytes]) -> None:
    """Whatever the app gives, no byte of a body follows such a status, and no framing says that one does."""
    answer = ours(status, [("Content-Length", "5"), ("X", "y")], body)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"" == rest
    assert b"\r\nX: y" in head
    assert b"chunked" not in head
    assert rest == theirs(status, [("Content-Length", "5"), ("X", "y")], body).partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("said", "body", "sent", "short"),
    [(5, [b"hello world"], b"hello", False), (5, [b"he", b"llo", b" world"], b"hello", False), (5, [b"he"], b"he", True)],
)
def test_another_length_than_said(said: int, body: list[bytes], sent: bytes, short: bool) -> None:  # noqa: FBT001
    """No more is sent than the app said; where it was less, the connection has to say so by its end."""
    fields = [("Content-Length", str(said))]
    written: list[bytes] = []
    reply = Reply(written.append, lambda: False)
    reply.start("200 OK", fields)
    for part in body:
        reply.body(part)
    reply.end()
    assert sent == b"".join(written).partition(b"\r\n\r\n")[2]
    assert short is reply.short
    assert undated(theirs("200 OK", fields, body)) == undated(b"".join(written))


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("OK", []),
        ("200 OK\r\nX: y", []),
        ("20 OK", []),
        ("200 OK", [("X\r\n", "y")]),
        ("200 OK", [("X Y", "y")]),
        ("200 OK", [("", "y")]),
        ("200 OK", [("X:", "y")]),
        ("200 OK", [("X", "y\r\nZ: a")]),
        ("200 OK", [("X", "y\n")]),
        ("200 OK", [("X", "\x00")]),
        ("200 OK", [("X", "\x7f")]),
        ("200 OK", [("Content-Length", "five")]),
    ],
)
def test_what_must_not_be_sent(status: str, fields: Fields) -> None:
    """A status or a field that would split an answer, or says nothing, is refused as gunicorn does, and nothing is sent."""
    with pytest.raises(REFUSED) as expected:
        theirs(status, fields, [b""])
    written: list[bytes] = []
    with pytest.raises(type(expected.value)):
        Reply(written.append, lambda: False).start(status, fields)
    assert [] == written


@pytest.mark.parametrize("name", ["Connection", "Keep-Alive", "Transfer-Encoding", "TE", "Upgrade", "connection", "Trailers"])
def test_hop_by_hop(name: str) -> None:
    """Fields that are between the client and this server are not the app's to send."""
    fields = [(name, "keep-alive"), ("Content-Length", "0")]
    for _ in range(2):  # the second time it is known
        assert undated(theirs("200 OK", fields, [b""])) == undated(ours("200 OK", fields, [b""]))


@pytest.mark.parametrize("value", ["close", "Close"])
def test_an_app_that_wants_an_end(value: str) -> None:
    """An app that says `Connection: close` is believed, and its client told."""
    reply = Reply(lambda _: None, lambda: False)
    reply.start("200 OK", [("Connection", value)])
    reply.end()
    assert reply.closes
    assert b"\r\nConnection: close\r\n" in ours("200 OK", [("Connection", value)], [b"a"])


def test_started_twice() -> None:
    """An app that begins again must have a reason; once something was sent, the reason is raised."""
    written: list[bytes] = []
    reply = Reply(written.append, lambda: False)
    reply.start("200 OK", [("X", "y"), ("Content-Length", "3")])
    with pytest.raises(AssertionError, match="already set"):
        reply.start("200 OK", [])
    error = KeyError("late")
    reply.start("500 Internal Server Error", [("Z", "a")], (KeyError, error, None))  # type: ignore[arg-type] # no trace is needed
    reply.body(b"oh", last=True)
    assert b"".join(written).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"X: y" not in written[0]
    assert b"\r\nContent-Length: 2\r\n" in written[0]
    with pytest.raises(KeyError, match="late"):
        reply.start("200 OK", [], (KeyError, error, None))  # type: ignore[arg-type] # as above


def test_the_write_that_start_gives() -> None:
    """An app of the oldest kind may write by the function that it is given."""
    written: list[bytes] = []
    reply = Reply(written.append, lambda: False)
    write = reply.start("200 OK", [])
    write(b"he")
    write(b"llo")
    reply.end()
    assert undated(theirs("200 OK", [], [b"he", b"llo"])) == undated(b"".join(written))


NAME = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=8)
VALUE = st.text(st.characters(max_codepoint=300), max_size=8)
FIELDS = st.lists(
    st.tuples(st.sampled_from(["Content-Type", "X-A", "Connection", "Server", "Date", "Vary"]) | NAME, st.just("a") | VALUE),
    max_size=4,
)


@given(
    st.sampled_from(["200 OK", "404 Not Found", "503 x"]) | VALUE,
    FIELDS,
    st.lists(st.binary(max_size=20), min_size=2, max_size=4),
    st.none() | st.integers(-1, 50),
    st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_anything(status: str, fields: Fields, body: list[bytes], length: int | None, closes: bool) -> None:  # noqa: FBT001
    """Whatever an app says, both send the same, or both refuse it."""
    given_fields = [*fields, *([] if length is None else [("Content-Length", str(length))])]
    wants_end = any(name.lower() == "connection" and value.lower() == "close" for name, value in fields)
    try:
        expected = theirs(status, given_fields, body, closes=closes or wants_end)
    except (*REFUSED, UnicodeError) as error:
        with pytest.raises(type(error)):
            ours(status, given_fields, body, closes=closes)
    else:
        assert undated(expected) == undated(ours(status, given_fields, body, closes=closes))
