"""How the server ends: a status per exception, and one line on standard error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.exits import (
    LONGEST_LINE,
    ConfigurationError,
    ExitError,
    ModelError,
    ResourceError,
    UnshareableError,
    by_status,
    leave,
    one_line,
)


@pytest.mark.parametrize(
    ("kind", "status"), [(ConfigurationError, 78), (ModelError, 70), (UnshareableError, 70), (ResourceError, 75)]
)
def test_leave(capsys: pytest.CaptureFixture[str], kind: type[ExitError], status: int) -> None:
    """The contract's status, and the line."""
    with pytest.raises(SystemExit) as left:
        leave(kind("what is wrong"))

    assert (status, "warmfork: what is wrong\n") == (left.value.code, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("status", "kind"), [(78, ConfigurationError), (75, ResourceError), (70, ModelError), (0, ModelError), (-9, ModelError)]
)
def test_by_status(status: int, kind: type[ExitError]) -> None:
    """A status that another process ended with becomes the error it had; one that says nothing blames the model."""
    error = by_status(status, "the line")

    assert (kind, "the line") == (type(error), str(error))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("", ""),
        (" two\r\n  lines\tand more\n", "two lines and more"),
        ("m/\udcff", "m/\\udcff"),
        ("\N{SNOWMAN} melts", "\N{SNOWMAN} melts"),
        ("x" * 2_000_000, "x" * LONGEST_LINE),
        ("x " * LONGEST_LINE, ("x " * LONGEST_LINE)[:LONGEST_LINE]),
    ],
)
def test_one_line(text: str, line: str) -> None:
    """Whatever text an error has, its message is one line of bounded length that can be written anywhere."""
    assert line == one_line(text) == str(ModelError(text))
    assert line == one_line(text).encode().decode()


@given(st.text(st.characters(exclude_categories=())))
def test_one_line_of_anything(text: str) -> None:
    """So it is for any text, lone surrogates included."""
    line = one_line(text)

    assert len(line.encode()) <= 6 * LONGEST_LINE
    assert len(line.splitlines()) <= 1
