"""Heads of requests, read by us and by gunicorn's own parser."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

from server.worker.head import Environ, Head, Heads, IncompleteHeadError

SERVER = ("127.0.0.1", 8000)
PEERS = [("127.0.0.1", 40_000), ("10.1.2.3", 40_001), ("::1", 40_002, 0, 0)]
SETTINGS: dict[str, dict[str, Any]] = {
    "as-it-comes": {},
    "tight": {"limit_request_line": 60, "limit_request_fields": 4, "limit_request_field_size": 40},
    "line-unlimited": {"limit_request_line": 0, "limit_request_fields": 3},
    "fields-unlimited": {"limit_request_line": 200, "limit_request_field_size": 0},
    "everybody-is-a-proxy": {"forwarded_allow_ips": "*"},
    "nobody-is-a-proxy": {"forwarded_allow_ips": ""},
    "a-network-of-proxies": {"forwarded_allow_ips": "10.1.0.0/16", "header_map": "refuse"},
    "own-scheme-headers": {"secure_scheme_headers": {"X-SSL": "on", "FRONT-END-HTTPS": "on"}, "forwarded_allow_ips": "*"},
    "scheme-header-with-underscore": {"secure_scheme_headers": {"X_SSL": "on"}, "header_map": "dangerous"},
    "no-scheme-headers": {"secure_scheme_headers": {}},
    "refuse": {"header_map": "refuse"},
    "dangerous": {"header_map": "dangerous"},
    "no-forwarder-headers": {"forwarder_headers": ""},
    "any-forwarder-header": {"forwarder_headers": "*"},
}
"""Settings of gunicorn's that say how a head is read, by what they are about."""

OURS = ("warmfork.received_ns",)
NOT_COMPARED = ("wsgi.input", "gunicorn.socket", "wsgi.errors", "wsgi.early_hints")
"""Objects of their own for each request."""


@dataclass
class Read:
    """What a reader makes of a head."""

    environ: Environ
    rest: bytes
    """What follows the head."""
    length: int
    """Bytes of the body."""
    closes: bool
    expects: bool


@cache
def config(name: str) -> Config:
    """gunicorn's configuration with some settings, and its strict parser, as the server runs it."""
    cfg = Config()
    for key, value in {"http_parser": "python", **SETTINGS[name]}.items():
        cfg.set(key, value)
    return cfg


@cache
def ours(name: str) -> Heads:
    """Our reader under some settings; one for all tests, since it remembers names of fields."""
    return Heads(config(name))


def read(data: bytes, name: str, peer: Any, seen: int = 0) -> Head | None:
    """What we make of the head at the start of `data`. Raises `IncompleteHeadError`."""
    heads = ours(name)
    return heads.read(data, seen, *heads.begin(peer, SERVER))


def reference(data: bytes, name: str, peer: Any) -> Read:
    """What gunicorn makes of it. Raises what it raises: `NoMoreData` or `StopIteration` where it would wait for more."""
    cfg = config(name)
    source = IterUnreader([data])
    request: Any = Request(cfg, source, peer)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sock: Any = theirs
        made: Any = wsgi.create(request, sock, peer, SERVER, cfg)
    environ = made[1]
    body = request.body.reader
    length = body.length if isinstance(body, LengthReader) else 0
    return Read(environ, source.take_buffered(), length, request.should_close(), request._expected_100_continue)  # noqa: SLF001


def comparable(environ: Environ) -> Environ:
    """An environ without what is another object each time, or is ours alone; threads are said by whoever runs the app."""
    left_out = (*NOT_COMPARED, *OURS, "wsgi.multithread")
    return {key: value for key, value in environ.items() if key not in left_out}


def compare(data: bytes, name: str, peer: Any) -> str:
    """Read `data` both ways; what became of it: `plain`, `left` to gunicorn or `incomplete`. Fails where the two differ."""
    try:
        head = read(data, name, peer)
    except IncompleteHeadError:
        with pytest.raises((NoMoreData, StopIteration)):
            reference(data, name, peer)
        return "incomplete"
    if head is None:
        return "left"
    theirs = reference(data, name, peer)
    assert comparable(theirs.environ) == comparable(head.environ)
    assert theirs.rest == data[head.size :]
    assert (theirs.length, theirs.closes, theirs.expects) == (head.length, head.closes, head.expects)
    return "plain"
