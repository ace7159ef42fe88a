"""The files of the corpus: what their text stands for, and that they say all that they must."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import corpus
from tests.corpus import Expected, Outcome


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("GET /\\r\\n\n\\r\\n\n", b"GET /\r\n\r\n"),
        ("a\n\nb", b"ab"),
        ("\\x00\\xff\\t\\\\x41", b"\x00\xff\t\\x41"),
        ("\\*3{a\\r\\n}b", b"a\r\na\r\na\r\nb"),
        ("{}\\*0{a}\\*2{\\x7d}", b"{}}}"),
    ],
)
def test_text_stands_for_bytes(text: str, sent: bytes) -> None:
    """Newlines of the file mean nothing; escapes and repeats are as described."""
    assert sent == corpus.decode(text)


@pytest.mark.parametrize("text", ["\\q", "a\tb", "\\x4", "\\xFF", "é", "\\*{a}", "\\*2{a", "\\"])
def test_text_that_stands_for_nothing(text: str) -> None:
    """Whatever is not described is refused, so that a slip of the pen is no case."""
    with pytest.raises(ValueError, match="stands for no byte"):
        corpus.decode(text)


@pytest.mark.parametrize(
    "text",
    [
        "answers = []\ncloses = true\n",
        "closes = true\n---\n",
        "answers = []\ncloses = true\nclosed = true\n---\n",
        "answers = [{ status = 200, value = [1] }]\ncloses = true\n---\n",
        "answers = []\ncloses = false\nhalf_close = true\n---\n",
        "answers = []\ncloses = true\n[differs.gthread]\nanswers = []\ncloses = true\n---\n",
        "answers = []\ncloses = true\n[differs.uvicorn]\nreason = 'a'\nanswers = []\ncloses = true\n---\n",
    ],
)
def test_a_head_that_is_not_as_described(tmp_path: Path, text: str) -> None:
    """A head with a key too many or too few, or with a difference for no reason, is refused."""
    file = tmp_path / "case.http"
    file.write_text(text, encoding="ascii")
    with pytest.raises(ValueError, match=r"case\.http|Object|Invalid"):
        corpus.read(file)


def test_sync_answers_once() -> None:
    """What `sync` must do follows from what `gthread` must: one final answer, then the end."""
    case = corpus.read(corpus.ROOT / "good" / "expect-twice-in-turn.http")
    assert Outcome([Expected(100), Expected(200, [7])], closes=True) == case.outcome("sync")


def test_the_corpus() -> None:
    """There are many cases, good and bad, no two send the same, and few differ from gunicorn's own workers."""
    cases = corpus.load()
    assert len(cases) == len({case.sent + bytes([case.half_close]) for case in cases})
    assert {"good", "bad"} == {case.name.partition("/")[0] for case in cases}
    assert len(cases) >= 250
    assert len([case for case in cases if case.differs]) <= 5
