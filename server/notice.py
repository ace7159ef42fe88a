"""What the numbers of the scoreboard mean, in words: written by the master, read by whoever wants to tell people.

Two halves take turns: the master writes the one that nobody is pointed to, then turns the pointer, one 64-bit word. A reader
copies and looks at the pointer again, so it never blocks and never sees half a text.
"""

from __future__ import annotations

import msgspec

from server.scoreboard import TEXT, Scoreboard


class ModelNotice(msgspec.Struct, frozen=True):
    """One model of one generation, as the trial found it."""

    name: str
    version: int
    index: int
    """Where its counters stand in a slot."""
    platform: str
    rung: str
    """How its weights are shared: `live`, `mapped` or `private`."""
    why: str
    """Why it is not the rung above; empty on the first."""
    batched: bool
    shapes: list[dict[str, int]]
    """The plan, in the order of the slot's `shapes`: axis name to length."""
    private_bytes: int
    """What one worker adds for it, as measured by the trial."""
    device: str = "cpu"
    """What it runs on: `cpu` or `cuda`."""
    graphs: bool = False
    """Whether its shapes are recorded as CUDA graphs there."""
    precision: str = ""
    difference: float | None = None
    """The largest difference from float32 on any sample."""
    compile_seconds: float | None = None
    """What compiling all shapes took, or finding them compiled."""


class Notice(msgspec.Struct, frozen=True):
    """All that the master has to say in words."""

    generations: dict[int, list[ModelNotice]] = {}
    """The models of each generation that still has workers."""
    doing: str = ""
    """What a load is at, while one is under way."""
    reasons: list[str] = []
    """Why the last start or reload was refused, or why workers are missing."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Notice)


def publish(board: Scoreboard, notice: Notice) -> None:
    """Put `notice` on the page. The master alone does so; raises `ValueError` past the room there is."""
    text = _encoder.encode(notice)
    if len(text) > TEXT:
        message = f"the notice of all models takes {len(text)} bytes, room is for {TEXT}"
        raise ValueError(message)
    serial = (board.get("notice") >> 32) + 1
    start = (serial & 1) * TEXT
    board.text[start : start + len(text)] = text
    board.set("notice", serial << 32 | len(text))


def read(board: Scoreboard) -> Notice:
    """Read the newest notice. The writer is never waited for."""
    while True:
        word = board.get("notice")
        if not word:
            return Notice()
        start = (word >> 32 & 1) * TEXT
        text = bytes(board.text[start : start + (word & 0xFFFFFFFF)])
        # Had the pointer turned meanwhile, the master could already be at work on the half that was copied.
        if board.get("notice") == word:
            return _decoder.decode(text)
