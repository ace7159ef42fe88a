"""The kinds of worker that serve the same app: ours, and gunicorn's own."""

from __future__ import annotations

from pathlib import Path

from tests.server import Server

MAX_BODY = 4096
"""The corpus is run with so small a bound that a body over it can be sent byte by byte."""

# The reading of HTTP that gunicorn calls its own is the one in Python: its parser in C, as far as it can be had, takes bare LF.
_GUNICORN = ("--http-parser", "python")
KINDS = {
    "warmfork": (),
    "gthread": ("-k", "gthread", "--threads", "4", *_GUNICORN),
    "sync": ("-k", "sync", "--threads", "1", *_GUNICORN),  # with more threads gunicorn would make it gthread
}


def serve(kind: str, models: Path) -> Server:
    """A server of one worker of `kind`."""
    return Server(models, *KINDS[kind], max_body=MAX_BODY)
