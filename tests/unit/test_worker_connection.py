"""One connection: what goes wrong on it ends with it, and nobody hears two answers to one request."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.unit.fronts import Client, Desk, chunked, get, post

LIVE = get("/v2/health/live")


def serves(desk: Desk) -> bool:
    """Whether another client is answered."""
    other = desk.open()
    other.send(post(3.0))
    desk.settle([other])
    return [200] == [answer.status for answer in other.answers()]


def told(desk: Desk, client: Client) -> list[tuple[int, bool]]:
    """The statuses of all answers, and whether each says that it is the last."""
    desk.settle([client])
    return [(answer.status, answer.says_close) for answer in client.answers()]


@pytest.mark.parametrize("bad", [b"BAD\r\n\r\n", LIVE[:-2] + b"Transfer-Encoding: gzip\r\n\r\n", chunked(1.0)[:-9]])
def test_gone_before_it_is_refused(bad: bytes) -> None:
    """A client that says nonsense and is gone before it can be told takes nobody with it."""
    with Desk() as desk:
        client = desk.open()
        client.send(LIVE + bad)
        client.sock.close()
        desk.settle()
        assert serves(desk)


@pytest.mark.parametrize("error", [ValueError("from the hook"), OSError(errno.EIO, "from the hook"), SystemExit(3)])
@pytest.mark.parametrize("request_", [LIVE, chunked(1.0), get("/v2/health/live", version="1.0")])
def test_a_hook_that_raises_before(error: BaseException, request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An operator's `pre_request` that raises fails this request; the worker serves on."""

    def hook(_worker: Any, _request: Any) -> None:
        if raised := errors.pop():
            raise raised

    errors = [None, error]
    with Desk(config={"pre_request": hook}) as desk:
        client = desk.open()
        client.send(request_)
        assert [(500, True)] == told(desk, client)
        assert client.ended
        assert serves(desk)
    assert "Error handling request" in caplog.text


def test_a_hook_that_raises_after(caplog: pytest.LogCaptureFixture) -> None:
    """An operator's `post_request` that raises is logged; the answer was given."""

    def hook(_worker: Any, _request: Any, _environ: Any, _response: Any) -> None:
        message = "from the hook"
        raise ValueError(message)

    with Desk(config={"post_request": hook}) as desk:
        client = desk.open()
        client.send(LIVE + LIVE)
        assert [(200, False)] * 2 == told(desk, client)
    assert "Exception in post_request hook" in caplog.text


@pytest.mark.parametrize("rest", [b"zz\r\n\r\n", b"5\r\nab", b"5\r\nabcdefgh", b"", b"ffffff\r\n" + bytes(1 << 17)])
def test_one_answer(rest: bytes) -> None:
    """What is wrong with a body that nobody wanted is not told: its request has been answered."""
    with Desk() as desk:
        client = desk.open()
        client.send(b"POST /nope HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)
        desk.settle([client])
        desk.wait(10)
        desk.wait(10)
        assert [404] == [status for status, _ in told(desk, client)]
        assert client.ended
        assert serves(desk)


def test_nothing_after_half_an_answer() -> None:
    """An app that fails in the middle of its answer leaves half of it, and no error behind that."""

    def app(_environ: Any, start: Any) -> Any:
        start("200 OK", [("Content-Length", "10")])
        yield b"half"
        message = "as asked"
        raise ValueError(message)

    with Desk(wsgi=app) as desk:
        for request in (LIVE, get("/", version="1.0")):
            client = desk.open()
            client.send(request)
            desk.settle([client])
            assert client.came.endswith(b"\r\n\r\nhalf")
            assert client.ended


def test_no_keep_alive() -> None:
    """`keepalive = 0` says close with each answer, and lets a new client take its time to ask."""
    with Desk(config={"keepalive": 0}) as desk:
        client = desk.open()
        desk.wait(1)
        client.send(LIVE)
        assert [(200, True)] == told(desk, client)
        assert client.ended


def test_one_more_for_ever() -> None:
    """A client that has always begun its next request keeps a worker that leaves for `graceful_timeout`, and no longer."""
    with Desk(config={"graceful_timeout": 30}) as desk:
        client = desk.open()
        client.send(LIVE + LIVE[:1])
        assert [(200, False)] == told(desk, client)
        desk.front.leave()
        for _ in range(12):
            client.send(LIVE[1:] + LIVE[:1])
            desk.settle([client])
            desk.wait(3)
        answers = client.answers()
        assert [False] * 10 == [answer.says_close for answer in answers[:10]]
        assert answers[-1].says_close
        assert client.ended
