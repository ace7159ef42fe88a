"""A request without its long lists of numbers, which need not be read twice: as part of the request, and as numbers."""

from __future__ import annotations

import re
import secrets

LONG = 1 << 14
"""Bytes of a request from which on it pays to take its lists out."""

# Inside of a string the second quote would have a backslash, so this is the end of a key: of `data`, or of one that ends so.
_KEY = re.compile(rb'"data"\s*:\s*')
_OPEN, _CLOSE, _QUOTE = b"[", b"]", b'"'


_SECRET = secrets.randbits(128)
"""So that no client can write the place of a list itself."""


def place(number: int) -> bytes:
    """What stands for the list of a number, from 0 on: a number too, which no request has."""
    return b"%d%04d" % (_SECRET, number)


def split(text: bytes) -> tuple[bytes, list[bytes]] | None:
    """`text` with its `place` instead of each list that is a value of `data`, and the lists.

    None if some value of `data` is no flat list without strings: then nothing is known of where it ends.
    """
    pieces: list[bytes] = []
    lists: list[bytes] = []
    at = 0
    while key := _KEY.search(text, at):
        begin = key.end()
        end = text.find(_CLOSE, begin) + 1
        if not end or not text.startswith(_OPEN, begin):
            return None
        if text.find(_OPEN, begin + 1, end) >= 0 or text.find(_QUOTE, begin, end) >= 0:
            return None
        pieces += (text[at:begin], place(len(lists)))
        lists.append(text[begin:end])
        at = end
    return b"".join([*pieces, text[at:]]), lists
