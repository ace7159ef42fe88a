"""Plain heads of requests, read at once; whatever is not plain is left to gunicorn's own `Request`.

The rules are gunicorn's: its C parser with its limits, and the header policy of `gunicorn.http.message`. What that policy has
something to say about (transfer codings, underscores, odd targets and methods, HTTP/1.0, repeated fields) is not plain. So
there is nothing here that could be read differently there, and a test runs both over the same heads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gunicorn.config import Config, PostRequest, PreRequest
from gunicorn.http.message import HeaderPolicy, Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import base_environ
from gunicorn_h1c import parse_request_fast
from gunicorn_h1c._parser_fast import IncompleteError  # the package shows another of this name

Environ = dict[str, Any]

_LINE = re.compile(rb"(GET|POST) ((/(?!/)[A-Za-z0-9\-._~!$&'()*+,;=:@/]*)(?:\?([A-Za-z0-9\-._~!$&'()*+,;=:@/?%]*))?) HTTP/1\.1")
_DIGITS = re.compile(r"[0-9]{1,15}")
_UNPLAIN = frozenset({"TRANSFER-ENCODING", "UPGRADE", "HTTP2-SETTINGS"})
_NAMES = 256
"""How many spellings of field names are remembered: those that clients use, not those that somebody makes up."""
END = b"\r\n\r\n"
LONG = 1 << 14
PIECES = 8
"""A head of more than `LONG` bytes is looked at again when there is an eighth more of it, or its end: not for each byte."""
_HEADS = 256
_KNOWN = 2048
"""How many heads are remembered, and of how many bytes at most."""


class IncompleteHeadError(Exception):
    """The head has no end yet."""


@dataclass(slots=True)
class Head:
    """A plain head."""

    environ: Environ
    """All but `wsgi.input`."""
    size: int
    """Bytes of the head."""
    length: int
    """Bytes of the body."""
    closes: bool
    """Whether the client wants the connection closed after the answer."""
    expects: bool
    """Whether the client waits for `100 Continue` before it sends the body."""


class Heads:
    """Reads heads under the settings of one gunicorn."""

    def __init__(self, cfg: Config) -> None:
        """Take over gunicorn's limits; they are read off a request of its own."""
        sample: Any = Request(cfg, IterUnreader([b"GET / HTTP/1.1\r\n\r\n"]), ("", 0))
        line = sample.limit_request_line or sample._fast_limit_request_line  # noqa: SLF001 - where there is no limit
        self.cfg = cfg
        self.limits = {
            "limit_request_line": line,
            "limit_request_fields": sample.limit_request_fields,
            "limit_request_field_size": sample.limit_request_field_size,
        }
        self.most: int = line
        """Bytes of a head that has no end yet after which gunicorn is asked: the C parser would wait for ever."""
        # An app that is mounted below a path, hooks for each request, rules that the C parser has not: all gunicorn's to handle.
        hooked = cfg.pre_request is not PreRequest.default or cfg.post_request is not PostRequest.default
        loose = cfg.permit_unconventional_http_method or cfg.permit_unconventional_http_version or cfg.casefold_http_method
        self.plain = not loose and not hooked and "SCRIPT_NAME" not in os.environ
        self.keys: dict[bytes, str] = {}
        self.known: dict[bytes, Head] = {}
        self.base: Environ = {**base_environ(cfg), "wsgi.multithread": True, "wsgi.url_scheme": "http", "SCRIPT_NAME": ""}

    def begin(self, client: Any, server: Any) -> tuple[Environ, Mapping[str, str]]:
        """What is the same for all requests of a connection: the environ to begin with, and its trusted scheme headers."""
        policy: Any = HeaderPolicy()
        policy.cfg, policy.peer_addr = self.cfg, client
        schemes, _ = policy._peer_trusted_for_forwarded()  # noqa: SLF001 - gunicorn's own rule, not a second one
        environ = {**self.base, "SERVER_PROTOCOL": "HTTP/1.1"}
        if not isinstance(client, tuple) or not isinstance(server, tuple):
            return {}, {}
        environ |= {"REMOTE_ADDR": client[0], "REMOTE_PORT": str(client[1])}
        environ |= {"SERVER_NAME": server[0], "SERVER_PORT": str(server[1])}
        return environ, {_key(name): value for name, value in schemes.items() if "_" not in name}

    def read(self, data: bytes, seen: int, environ: Environ, schemes: Mapping[str, str]) -> Head | None:
        """Read the head at the start of `data`, of which `seen` bytes were tried before; None if it is not plain.

        Raises `IncompleteHeadError` if it has no end yet.
        """
        if not self.plain or not environ:
            return None
        # PERF: a client with a pool sends the same head again and again; what it means depends on nothing but its bytes.
        end = data.find(END)
        known = self.known.get(data[:end]) if end >= 0 else None
        if known is None:
            known = self._parse(data, seen)
            if known is None:
                return None
            if len(self.known) == _HEADS:
                self.known.clear()
            if end < _KNOWN:
                self.known[data[:end]] = known
        environ = {**environ, **known.environ}
        if schemes:
            said = [key for key in schemes if key in environ]
            if len(said) > 1:
                return None
            if said:
                environ["wsgi.url_scheme"] = "https" if environ[said[0]] == schemes[said[0]] else "http"
        return Head(environ, known.size, known.length, known.closes, known.expects)

    def _parse(self, data: bytes, seen: int) -> Head | None:
        """The head at the start of `data`, with the part of its environ that is the client's."""
        end = data.find(b"\r\n")
        line = _LINE.fullmatch(data, 0, end) if end >= 0 else None
        try:
            request = parse_request_fast(data, seen, **self.limits)
        except IncompleteError:
            # gunicorn judges the first line, and ends of lines, before it waits for more.
            if len(data) <= self.most and (line or end < 0) and data.count(b"\n") == data.count(b"\r\n"):
                raise IncompleteHeadError from None
            return None
        except Exception:  # noqa: BLE001 - gunicorn says what is wrong with it
            return None
        # The C parser takes lines that end in LF alone.
        if not line or data.count(b"\r\n", 0, request.consumed) != request.header_count + 2:
            return None
        parts = [part.decode("latin-1") for part in line.groups(b"")]
        environ: Environ = dict(zip(("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING"), parts, strict=True))
        for name, value in request.headers:
            key = self.keys.get(name) or self._learn(name)
            if not key or key in environ:
                return None
            environ[key] = value.decode("latin-1")
        length = environ.get("CONTENT_LENGTH", "0")
        expects = environ.get("HTTP_EXPECT", "").lower()
        if not _DIGITS.fullmatch(length) or expects not in ("", "100-continue") or (not expects and "HTTP_EXPECT" in environ):
            return None
        closes = environ.get("HTTP_CONNECTION", "").lower().strip(" \t") == "close"
        return Head(environ, request.consumed, int(length), closes, bool(expects))

    def _learn(self, name: bytes) -> str:
        """The environ's key for a field; empty if the field is not plain."""
        text = name.decode("latin-1").upper()
        key = "" if not text or "_" in text or text in _UNPLAIN else _key(text)
        if len(self.keys) < _NAMES:
            self.keys[name] = key
        return key


def _key(name: str) -> str:
    key = name.replace("-", "_")
    return key if name in ("CONTENT-TYPE", "CONTENT-LENGTH") else f"HTTP_{key}"
