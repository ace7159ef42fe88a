"""Made-up and mutated heads: whatever we read at once, gunicorn's own parser reads as we do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from server.worker.head import IncompleteHeadError
from tests import corpus
from tests.unit.heads import PEERS, SETTINGS, comparable, compare, read
from tests.unit.test_worker_head import PLAIN, UNPLAIN

EXAMPLES = 1500
SECONDS = 100
"""How long a test of so many examples may take."""
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = [
    *(
        "Host",
        "Content-Type",
        "content-length",
        "Connection",
        "Expect",
        "X-Forwarded-Proto",
        "X-Ssl",
        "X",
        "Cookie",
        "Remote-User",
    ),
]
ODD_NAMES = [
    *("X-Forwarded-Protocol", "X-Forwarded-Ssl", "X_Ssl", "Front-End-Https", "Script_Name", "SCRIPT-NAME", "Path_Info", "host"),
    *(
        "Transfer-Encoding",
        "Upgrade",
        "Te",
        "Trailer",
        "HTTP2-Settings",
        "X_A",
        "X-A",
        "X A",
        "X ",
        "",
        "\u00e9",
        "Content-Length",
    ),
]
VALUES = [
    "",
    "0",
    "5",
    "00",
    "close",
    "Close",
    "keep-alive",
    "100-continue",
    "100-Continue",
    "https",
    "http",
    "on",
    "a\tb",
    "\u00e9\u00ff",
]
ODD_VALUES = [
    *("+5", "-1", "5, 5", "1e3", "0x5", "9" * 15, "9" * 19, "\u00b2", "chunked", "identity", "gzip, chunked", "100-please"),
    *(" close\t", "upgrade", "close, keep-alive", "a\x00b", "a\x7fb", "a\nb", "a\rb", "\t", "x" * 50),
]
TARGETS = ["/", "/v2", "/v2/models/m/infer?a=b", "/;=?/?%20"]
ODD_TARGETS = ["/a%20b", "//a", "*", "http://a/b", "/a#b", "/\u00e9", "/a b", "/a\tb", "", "a", "/;=?#"]
ODD_METHODS = ["HEAD", "PUT", "OPTIONS", "get", "G", "CONNECT", "PRI", "GET\t", "A" * 30]
ODD_VERSIONS = ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/11", "HTTP/1.1 ", ""]
ODD_ENDS = ["\n", "\r", "\r\n ", "\r\r\n", ""]
TOKEN = st.text("abcXYZ019-!~", min_size=1, max_size=8)
TEXT = st.text(st.characters(max_codepoint=255), max_size=12)


def mostly(usual: st.SearchStrategy[str], odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Something odd one time in thirty."""
    return st.integers(0, 29).flatmap(lambda number: usual if number else odd)


def one(*texts: str) -> st.SearchStrategy[str]:
    """One of these."""
    return st.sampled_from(texts)


METHOD = mostly(one("GET", "POST"), one(*ODD_METHODS))
TARGET = mostly(one(*TARGETS), one(*ODD_TARGETS))
VERSION = mostly(one("HTTP/1.1"), one(*ODD_VERSIONS))
NAME = mostly(one(*NAMES) | TOKEN, one(*ODD_NAMES) | st.text("a_ :-", max_size=8))
COLON = mostly(one(": ", ":", ":\t"), one(" : ", ""))
VALUE = mostly(one(*VALUES), one(*ODD_VALUES) | TEXT)
END = mostly(one("\r\n"), one(*ODD_ENDS))
FIELD = st.tuples(NAME, COLON, VALUE).map("".join)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is wholly or nearly right, and perhaps a beginning of what follows."""
    unique = st.lists(FIELD, max_size=5, unique_by=lambda field: field.partition(":")[0].lower())
    fields = draw(unique) + draw(mostly(st.just(""), FIELD).map(lambda field: [field] if field else []))
    line = " ".join((draw(METHOD), draw(TARGET), draw(VERSION)))
    text = "".join(each + draw(END) for each in (line, *fields, ""))
    return text.encode("latin-1") + draw(st.sampled_from([b"", b"hello", b"GET / HTTP/1.1\r\n\r\n", b"\r\n"]))


SEEDS = [*PLAIN * 4, *UNPLAIN, *(case.sent for case in corpus.load() if len(case.sent) < 1000)]
TOKENS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"_",
    b"-",
    b"%",
    b"#",
    b"?",
    b"\xff",
    b"HTTP/1.1",
    b"close",
]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A head that was good or bad in a way that somebody thought of, with up to three more things done to it."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        match draw(st.sampled_from(["put", "cut", "flip", "end", "splice"])):
            case "put":
                data[start:start] = draw(st.sampled_from(TOKENS))
            case "cut":
                del data[start:end]
            case "flip":
                data[start : start + 1] = bytes([draw(st.integers(0, 255))])
            case "end":
                del data[start:]
            case "splice":
                other = draw(st.sampled_from(SEEDS))
                data[start:end] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


PEER, SETTING = st.sampled_from(PEERS), st.sampled_from(sorted(SETTINGS))


@pytest.mark.timeout(SECONDS)
@given(heads(), SETTING, PEER)
@FUZZ
def test_made_up(data: bytes, name: str, peer: Any) -> None:
    """Heads of likely and unlikely parts."""
    event(compare(data, name, peer))


@pytest.mark.timeout(SECONDS)
@given(mutants(), SETTING, PEER)
@FUZZ
def test_mutants(data: bytes, name: str, peer: Any) -> None:
    """Heads that were whole, and have been hurt."""
    event(compare(data, name, peer))


@pytest.mark.timeout(SECONDS)
@given(mutants(), SETTING, PEER)
@FUZZ
def test_beginnings(data: bytes, name: str, peer: Any) -> None:
    """Everything that such a head begins with: what we wait for more of, gunicorn does too."""
    for end in range(1, min(len(data), 120), 3):
        compare(data[:end], name, peer)


def outcome(data: bytes, name: str, peer: Any, seen: int = 0) -> Any:
    """What we make of a head, in a way that two of them can be compared."""
    try:
        head = read(data, name, peer, seen)
    except IncompleteHeadError:
        return "incomplete"
    return head and (comparable(head.environ), head.size, head.length, head.closes, head.expects)


@pytest.mark.timeout(SECONDS)
@given(heads() | mutants(), SETTING, PEER, st.integers(1, 400))
@FUZZ
def test_pieces(data: bytes, name: str, peer: Any, cut: int) -> None:
    """However a head comes, we read it as we do when it comes whole, or leave it to gunicorn."""
    if cut < len(data) and outcome(data[:cut], name, peer) == "incomplete":
        whole, pieces = outcome(data, name, peer), outcome(data, name, peer, cut)
        assert whole == pieces or None in (whole, pieces)
