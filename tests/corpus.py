r"""The corpus of good and bad HTTP: a file per case, what one client sends on one connection and what must come back.

A file is a TOML head, a line of `---`, and the bytes that are sent, in printable ASCII:

- the newlines of the file mean nothing; a line of HTTP ends in `\r\n`, written so
- `\r`, `\n`, `\t`, `\\` and `\xHH` stand for one byte each
- `\*N{text}` stands for `text` N times; it ends at the next `}`, and escapes in it count
- every other character is itself; a `\` before anything else is an error
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

ROOT = Path(__file__).parent / "http" / "corpus"
SEPARATOR = "---\n"
_REPEAT = re.compile(r"\\\*(\d+)\{([^}]*)\}")
_PIECE = re.compile(r"\\(?:x([0-9a-f]{2})|([rnt\\]))|([ -\[\]-~])")
_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}


class Expected(Struct, frozen=True, forbid_unknown_fields=True):
    """One answer: a status, and what else of it is the same each time."""

    status: int
    values: list[float] | None = None
    """The elements of all outputs in their order, for an inference that goes well."""
    bodiless: bool = False
    """Whether this answers a HEAD, so that no body follows its head."""

    @property
    def interim(self) -> bool:
        """Whether another answer to the same request follows, as after `100 Continue`."""
        return self.status < 200


class Outcome(Struct, frozen=True, forbid_unknown_fields=True):
    """What must come of a case: the answers in order, and whether the server closes the connection after the last."""

    answers: list[Expected]
    closes: bool


class Difference(Outcome, frozen=True, forbid_unknown_fields=True):
    """What one of gunicorn's own workers does instead, and why ours does not."""

    reason: Annotated[str, Meta(min_length=1)]


class Case(Outcome, frozen=True, forbid_unknown_fields=True):
    """One file."""

    half_close: bool = False
    """Whether the client says after its last byte that no more will come. The server then closes too, whatever it answered."""
    differs: dict[Literal["gthread", "sync"], Difference] = {}
    """Where a worker of gunicorn's does something else."""
    name: str = ""
    """Where the file lies in the corpus, without its ending."""
    sent: bytes = b""

    def outcome(self, kind: str) -> Outcome:
        """What must come from the worker `kind`: `warmfork`, or gunicorn's own `gthread` or `sync`.

        `sync` answers one request per connection, interim answers aside, and closes.
        """
        if kind == "sync" and "sync" not in self.differs:
            whole = self.outcome("gthread")
            final = next((number for number, answer in enumerate(whole.answers, 1) if not answer.interim), None)
            return Outcome(whole.answers[:final], closes=True)
        for name, difference in self.differs.items():
            if name == kind:
                return difference
        return self


def decode(text: str) -> bytes:
    """The bytes that `text` stands for. Raises `ValueError` naming the first place that stands for nothing."""
    text = _REPEAT.sub(lambda found: found[2] * int(found[1]), text.replace("\n", ""))
    parts, place = [], 0
    while place < len(text):
        found = _PIECE.match(text, place)
        if found is None:
            message = f"stands for no byte: {text[place : place + 20]!r}"
            raise ValueError(message)
        number, escape, plain = found.groups()
        parts.append(bytes.fromhex(number) if number else _ESCAPES[escape] if escape else plain.encode("ascii"))
        place = found.end()
    return b"".join(parts)


def read(path: Path) -> Case:
    """Read one file. Raises `ValueError` (msgspec's are such) for a head or bytes that are not as described above."""
    head, separator, text = path.read_text(encoding="ascii").partition(SEPARATOR)
    if not separator:
        message = f"{path} has no line '---'"
        raise ValueError(message)
    case = msgspec.toml.decode(head, type=Case)
    if case.half_close and not case.closes:
        message = f"{path}: a client that sends no more is left by the server too: closes = true"
        raise ValueError(message)
    return msgspec.structs.replace(case, name=str(path.relative_to(ROOT).with_suffix("")), sent=decode(text))


def load() -> list[Case]:
    """All cases, sorted by name."""
    return [read(path) for path in sorted(ROOT.glob("*/*.http"))]
