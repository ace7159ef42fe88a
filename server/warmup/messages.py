"""What a throw-away child says to its parent: one JSON text a line, through a pipe."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from server.models.finding import Finding, Taken


class Doing(msgspec.Struct, tag="doing", frozen=True):
    """The step at hand."""

    what: str


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """Why the work can't be done."""

    status: int
    line: str
    """Empty where memory ran out: the parent knows at what."""
    unshareable: bool = False


class Done(msgspec.Struct, tag="done", frozen=True):
    """The work was done and the child survived it."""


Message = Doing | Finding | Taken | Failed | Done
Say = Callable[[Message], None]

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line."""
    return _decoder.decode(line)
