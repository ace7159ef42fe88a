"""Plain heads: what we read at once is what gunicorn's own parser makes of it, and all else is left to it."""

from __future__ import annotations

import pytest

from server.worker.head import Heads, IncompleteHeadError
from tests import corpus
from tests.unit.heads import PEERS, SERVER, SETTINGS, compare, config, read

HOST = b"\r\nHost: a\r\n"
PLAIN = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /v2/health/live HTTP/1.1" + HOST + b"\r\n",
    b"GET /v2?a=b&c=%20?/ HTTP/1.1" + HOST + b"\r\nrest",
    b"POST /v2/models/m/infer HTTP/1.1" + HOST + b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\nhelloGET /",
    b"POST /a HTTP/1.1" + HOST + b"content-length:0\r\nACCEPT: */*\r\nX-Empty:\r\nX-Tab: \ta\tb\t \r\n\r\n",
    b"POST /a HTTP/1.1" + HOST + b"Content-Length: 7\r\nExpect: 100-Continue\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"Connection: close\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"Connection: CLOSE \r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"Connection: keep-alive\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"Connection: close, TE\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"X-Forwarded-Proto: https\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"X-Forwarded-Proto: http\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"X-Ssl: on\r\nX-Latin: \xe9\xff\r\n\r\n",
    b"GET /a HTTP/1.1" + HOST + b"Server: x\r\nRemote-Addr: y\r\nHttps: on\r\nProxy: z\r\n\r\n",
]
UNPLAIN = [
    b"HEAD / HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"BREW / HTTP/1.1\r\n\r\n",
    b"get / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.2\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"GET  / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\n\n",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    b"\r\nGET / HTTP/1.1\r\n\r\n",
    b"GET http://a/b HTTP/1.1\r\n\r\n",
    b"GET //a/b HTTP/1.1\r\n\r\n",
    b"GET /a%2fb HTTP/1.1\r\n\r\n",
    b"GET /a#b HTTP/1.1\r\n\r\n",
    b"GET /\xe9 HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\r\nX: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX_Y: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
    b"GET / HTTP/1.1\r\n: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: \0\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 16 + b"\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-please\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
]
SCHEMES = b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n"


@pytest.mark.parametrize("data", PLAIN, ids=repr)
def test_plain(data: bytes) -> None:
    """What clients send every day is read at once, and as gunicorn reads it."""
    for peer in PEERS:
        assert "plain" == compare(data, "as-it-comes", peer)


@pytest.mark.parametrize("data", UNPLAIN, ids=repr)
def test_not_plain(data: bytes) -> None:
    """What gunicorn's policy has something to say about is left to it."""
    assert "left" == compare(data, "as-it-comes", PEERS[0])
    assert "left" == compare(SCHEMES, "as-it-comes", PEERS[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    """Whatever gunicorn is set to, and whoever asks, what we read is what it reads."""
    for peer in PEERS:
        for data in [*PLAIN, *UNPLAIN, SCHEMES]:
            compare(data, name, peer)


@pytest.mark.parametrize("name", SETTINGS)
def test_corpus(name: str) -> None:
    """The same for every request of the corpus, and for each beginning of it."""
    for case in corpus.load():
        for data in (case.sent, *(case.sent[:end] for end in range(1, min(len(case.sent), 200), 7))):
            compare(data, name, PEERS[0])


@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
def test_limits(over: int) -> None:
    """A line, a field and a number of fields that are just allowed, and just not: gunicorn's limits to the byte."""
    line = b"GET /" + b"a" * (60 - len("GET / HTTP/1.1") + over) + b" HTTP/1.1\r\n"
    field = b"X: " + b"a" * (40 - len("X: \r\n") + over) + b"\r\n"
    fields = b"".join(b"X%d: a\r\n" % number for number in range(4 + over))
    for data in (line + b"\r\n", b"GET / HTTP/1.1\r\n" + field + b"\r\n", b"GET / HTTP/1.1\r\n" + fields + b"\r\n"):
        assert ("plain" if over <= 0 else "left") == compare(data, "tight", PEERS[0])


def test_without_end() -> None:
    """A head that has no end is given to gunicorn, which refuses it, before it has become large."""
    for start in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100):
        data = start
        while True:
            try:
                head = read(data, "as-it-comes", PEERS[0], len(data) - 100 if len(data) > len(start) else 0)
            except IncompleteHeadError:
                data += b"a" * 100
                assert len(data) < 16_384
            else:
                assert head is None
                break


def test_a_limit_of_gunicorns_own_length() -> None:
    """What gunicorn refuses of a head that has not ended is not waited for, under limits much lower than usual."""
    for size in range(1, 1000, 13):
        compare(b"GET / HTTP/1.1\r\nX: " + b"a" * size, "tight", PEERS[0])
        compare(b"GET /" + b"a" * size, "tight", PEERS[0])


@pytest.mark.parametrize("data", PLAIN, ids=repr)
def test_pieces(data: bytes) -> None:
    """A head that comes in two pieces, wherever it is cut, is what it is whole."""
    whole = read(data, "as-it-comes", PEERS[0])
    assert whole
    for cut in range(1, whole.size):
        with pytest.raises(IncompleteHeadError):
            read(data[:cut], "as-it-comes", PEERS[0])
        again = read(data, "as-it-comes", PEERS[0], cut)
        assert again
        assert (whole.environ | {"wsgi.errors": 0}, whole.size, whole.length) == (
            again.environ | {"wsgi.errors": 0},
            again.size,
            again.length,
        )


def test_names_are_learnt_within_bounds() -> None:
    """Names that somebody makes up are read rightly and not all remembered."""
    heads = Heads(config("as-it-comes"))
    begin = heads.begin(PEERS[0], SERVER)
    for number in range(2000):
        head = heads.read(b"GET / HTTP/1.1\r\nX-%d: %d\r\n\r\n" % (number, number), 0, *begin)
        assert head
        assert str(number) == head.environ[f"HTTP_X_{number}"]
    assert len(heads.keys) <= 256


def test_requests_share_nothing() -> None:
    """What one request's app writes into its environ is not in the next one's."""
    heads = Heads(config("as-it-comes"))
    begin = heads.begin(PEERS[0], SERVER)
    for _ in range(2):
        head = heads.read(PLAIN[1], 0, *begin)
        assert head
        assert "left behind" not in head.environ
        head.environ["left behind"] = True


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("permit_unconventional_http_method", True),
        ("permit_unconventional_http_version", True),
        ("casefold_http_method", True),
        ("pre_request", lambda _worker, _request: None),
        ("post_request", lambda _worker, _request, _environ, _response: None),
    ],
)
def test_settings_that_leave_all_to_gunicorn(setting: str, value: object) -> None:
    """Rules that the C parser has not, and hooks that take gunicorn's own request, leave every head to it."""
    cfg = type(config("as-it-comes"))()
    cfg.set("http_parser", "python")
    cfg.set(setting, value)
    heads = Heads(cfg)
    assert heads.read(PLAIN[1], 0, *heads.begin(PEERS[0], SERVER)) is None


def test_an_app_below_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that is mounted below a path is gunicorn's to handle."""
    monkeypatch.setenv("SCRIPT_NAME", "/below")
    heads = Heads(config("as-it-comes"))
    assert heads.read(PLAIN[1], 0, *heads.begin(PEERS[0], SERVER)) is None


def test_a_unix_socket() -> None:
    """Where client or server have no address of host and port, gunicorn works out the environ."""
    heads = Heads(config("as-it-comes"))
    for client, server in (("", "/run/warmfork"), (b"", "/run/warmfork"), ("", SERVER)):
        assert heads.read(PLAIN[1], 0, *heads.begin(client, server)) is None
