"""One connection: what goes wrong on it ends with it, and nobody hears two answers to one request."""

from __future__ import annotations

import errno
import gzip
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from server.tensors import Array, Tensors
from server.worker.loop import Loop
from tests.unit.fakes import FakeSession
from tests.unit.fronts import Client, Desk, binary, chunked, get, post

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


@pytest.mark.parametrize("request_", [post(1.0), chunked(1.0)])
@pytest.mark.parametrize(("begun", "answered", "closed"), [(2, 0, 0), (0, 2, 2)])
def test_who_is_let_go(request_: bytes, begun: int, answered: int, closed: int) -> None:
    """How many connections are too many counts when they are answered: those that waited meanwhile have promised nothing."""
    with Desk() as desk:
        clients = [desk.open() for _ in range(8)]
        desk.batcher.held, desk.front.surplus = True, begun
        for client in clients:
            client.send(request_)
        desk.settle(clients)
        desk.batcher.held, desk.front.surplus = False, answered
        desk.settle(clients)
        assert closed == sum(client.answers()[0].says_close for client in clients)


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


def packed(size: int) -> bytes:
    """An inference padded to `size` bytes, as gzip."""
    head, _, body = post(1.0).partition(b"\r\n\r\n")
    small = gzip.compress(body.ljust(size))
    length = b"Content-Length: %d" % len(body)
    return head.replace(length, b"Content-Encoding: gzip\r\nContent-Length: %d" % len(small)) + b"\r\n\r\n" + small


def test_what_is_unpacked_is_held() -> None:
    """Small bodies that become large ones are bounded by what they become, all together."""
    with Desk({"MAX_BODY": "1 MiB"}) as desk:
        desk.batcher.held = True
        clients = [desk.open() for _ in range(8)]
        for client in clients:
            client.send(packed(1 << 20))
            desk.turn()
        desk.batcher.held = False
        desk.settle(clients)
        assert [200] * 4 + [503] * 4 == sorted(answer.status for client in clients for answer in client.answers())
        assert serves(desk)


def test_answers_that_nobody_takes() -> None:
    """When unread answers fill the bound, what comes next is refused; when they are cut off, it is served again."""
    with Desk({"MAX_BODY": "1 MiB"}) as desk:
        deaf = [desk.open() for _ in range(64)]
        for client in deaf:
            client.send(binary(1.0, "wide", 4))
            desk.turn()
        assert desk.front.held < (4 << 20) + (1 << 20)
        assert not serves(desk)
        desk.wait(6)
        assert 0 == desk.front.held
        assert serves(desk)


@pytest.mark.parametrize(("most", "whole"), [(1 << 12, False), (1 << 17, True)])
def test_who_takes_too_little(most: int, *, whole: bool) -> None:
    """A client may take its answer bit by bit as long as it takes enough; one that only keeps it from ending may not."""
    with Desk() as desk:
        client = desk.open()
        client.send(binary(1.0, "wide", 4))
        desk.turn()
        for _ in range(300):
            with suppress(BlockingIOError):
                client.came += client.sock.recv(most)
            desk.wait(2)
            if desk.front.connections == {}:
                break
        assert whole == (client.answers() != [])


def test_half_closed_with_the_last_of_an_answer() -> None:
    """A client that takes its answer and then says that it sends no more gets what it asked for before."""
    with Desk() as desk:
        client = desk.open()
        client.send(binary(1.0, "wide", 4) + LIVE)
        desk.turn(3)
        assert desk.front.held > 0
        client.read()
        client.sock.shutdown(socket.SHUT_WR)
        assert [200, 200] == [status for status, _ in told(desk, client)]


@pytest.mark.parametrize("size", [1, 40, len(post(1.0)) - 1])
def test_what_came_while_a_batch_ran(size: int) -> None:
    """The rest of a request that came in time is not late because the loop had no time to read it."""
    with Desk() as desk:
        client = desk.open()
        client.send(post(1.0)[:size])
        desk.turn()
        client.send(post(1.0)[size:])
        desk.clock.added += 20
        desk.front.read(0)
        desk.front.tick()
        desk.front.work()
        assert [(200, False)] == told(desk, client)


def test_a_long_batch_cuts_nobody() -> None:
    """Time that a batch took is not the client's: neither for what it takes of its answer, nor for its next request."""
    with Desk() as desk:
        session = desk.models[1].session
        assert isinstance(session, FakeSession)
        answer = session.answer

        def slow(inputs: Tensors) -> Mapping[str, Array]:
            desk.clock.added += 20
            return answer(inputs)

        session.answer = slow
        client, other = desk.open(), desk.open()
        client.send(binary(1.0, "wide", 4))
        other.send(post(1.0, "wide")[:50])
        desk.front.read(0)
        desk.front.work()
        other.send(post(1.0, "wide")[50:])
        desk.front.read(0)
        desk.front.tick()
        assert [(200, False)] == told(desk, client)
        assert [(200, False)] == told(desk, other)


def test_access_log(tmp_path: Path) -> None:
    """Every answer has its line, plain or not, of the app or the worker itself; a client that left before has none."""
    path = tmp_path / "access.log"
    form = "%(s)s %(m)s %({content-length}i)s"
    with Desk({"MAX_BODY": "1000"}, {"accesslog": str(path), "access_log_format": form}) as desk:
        desk.batcher.held = True
        gone = desk.open()
        gone.send(binary(1.0, "wide", 4))
        desk.turn()
        gone.sock.close()
        desk.batcher.held = False
        large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n"
        for request in (post(1.0), get("/nope"), get("/", method="OPTIONS"), large):
            client = desk.open()
            client.send(request)
            desk.settle([client])
    length = len(post(1.0).partition(b"\r\n\r\n")[2])

    assert [f"200 POST {length}", "404 GET -", "404 OPTIONS -", "413 POST 1001"] == path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize("piece", [1, 3, 4, 1000])
def test_long_head(method: str, piece: int) -> None:
    """A long head in small pieces is answered when its end is there, and not before."""
    fields = [f"x-{number}: {'x' * 3000}" for number in range(8)]
    with Desk() as desk:
        client = desk.open()
        sent = get("/", *fields, method=method)
        client.send(sent[:20_000])
        desk.turn(4)
        for place in range(20_000, len(sent), piece):
            assert client.came == b""
            client.send(sent[place : place + piece])
            desk.turn()
            client.read()
        assert [404] == [status for status, _ in told(desk, client)]


@pytest.mark.parametrize("size", [20_000, 200_000])
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_a_field_that_is_too_long(method: str, size: int) -> None:
    """It is refused while it comes: nobody reads on for an end that changes nothing."""
    with Desk() as desk:
        client = desk.open()
        client.send(get("/", f"x: {'x' * size}", method=method)[:-4])
        desk.turn(4)
        client.read()
        assert [(431, True)] == told(desk, client)


@pytest.mark.parametrize("cut", [1, 5000, -1])
def test_a_request_line_longer_than_a_field(cut: int) -> None:
    """What holds for fields does not hold for the first line, in whatever pieces it comes."""
    line = b"OPTIONS /" + b"x" * 5000 + b" HTTP/1.1\r\n"
    with Desk(config={"limit_request_line": 8000, "limit_request_field_size": 100}) as desk:
        client = desk.open()
        client.send(line[:cut])
        desk.turn(2)
        client.send(line[cut:] + b"Host: a\r\n\r\n")
        desk.turn(4)
        client.read()
        assert [404] == [status for status, _ in told(desk, client)]


def test_the_queue_holds_for_bodies_that_take_long() -> None:
    """Who was let in while nobody waited, and sends its body when many do, is refused like everybody else."""
    with Desk({"MAX_QUEUE": "2"}) as desk:
        desk.batcher.held = True
        clients = [desk.open() for _ in range(8)]
        for client in clients:
            client.send(chunked(1.0)[:-5])
        desk.turn()
        for client in clients:
            client.send(b"0\r\n\r\n")
        desk.turn(3)
        desk.batcher.held = False
        desk.settle(clients)
        assert [200] * 2 + [503] * 6 == sorted(answer.status for client in clients for answer in client.answers())


@pytest.mark.parametrize("request_", [post(1.0), chunked(1.0)])
def test_gone_before_its_batch(request_: bytes) -> None:
    """A client that left while it waited is dropped from the line, however it had sent its request."""
    with Desk() as desk:
        desk.batcher.held = True
        client = desk.open()
        client.send(request_)
        desk.turn()
        assert 1 == desk.batcher.waiting
        client.sock.close()
        desk.turn(4)
        assert 0 == desk.batcher.waiting


@pytest.mark.parametrize("request_", [LIVE, chunked(1.0), get("/v2/health%2Flive"), get("/", version="1.0", method="OPTIONS")])
def test_pipelined_when_the_worker_leaves(request_: bytes) -> None:
    """What has come together is answered together, and the last answer says that it is the last."""
    with Desk() as desk:
        client, lone = desk.open(), desk.open()
        kept = request_ if b" HTTP/1.1" in request_ else request_.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
        client.send(kept * 3)
        lone.send(kept)
        desk.front.leave()
        desk.settle([client, lone])
        assert [False, False, True] == [answer.says_close for answer in client.answers()]
        assert [True] == [answer.says_close for answer in lone.answers()]


@pytest.mark.parametrize("fields", [("Content-Length: 99999", "1.0"), ("Transfer-Encoding: chunked", "1.1")])
def test_gone_while_its_body_is_thrown_away(fields: tuple[str, str]) -> None:
    """A client that is gone before it hears that its body is too large leaves nothing behind: no task waits for the rest."""
    field, version = fields
    with Desk({"MAX_BODY": "1000"}) as desk:
        client = desk.open()
        client.send(get("/v2/models/m/infer", field, method="POST", version=version) + b"800\r\n" + bytes(2048))
        client.sock.close()
        desk.settle()
        assert desk.tasks.count == len(desk.tasks.idle)


def test_a_descriptor_that_is_used_again() -> None:
    """News of a connection that was closed a moment ago is not told to the new one that has its descriptor."""
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    heard: list[str] = []

    def first(_event: int) -> None:
        heard.append("first")
        old = pairs[1][0].fileno()
        loop.remove(old)
        pairs[1][0].close()
        pairs.append(socket.socketpair())
        assert old in {each.fileno() for each in pairs[2]}
        loop.add(old, lambda _event: heard.append("new"))

    loop.add(pairs[0][0].fileno(), first)
    loop.add(pairs[1][0].fileno(), lambda _event: heard.append("second"))
    for pair in list(pairs):
        pair[1].send(b"x")
    assert loop.turn(0)
    assert heard == ["first"]
    loop.epoll.close()
    for pair in pairs:
        for each in pair:
            each.close()


def test_a_defect_of_ours(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong where nothing should ends its connection and no other."""
    with Desk() as desk:
        with monkeypatch.context() as patch:
            patch.setattr(desk.office, "handle_error", lambda *_: 1 // 0, raising=False)
            client = desk.open()
            client.send(b"BAD\r\n\r\n")
            desk.settle([client])
        assert client.ended
        assert serves(desk)
    assert "a connection failed" in caplog.text
