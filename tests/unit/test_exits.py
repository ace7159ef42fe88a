"""How the server ends: a status per exception, and one line on standard error."""

from __future__ import annotations

import pytest

from server.exits import ConfigurationError, ExitError, ModelError, ResourceError, UnshareableError, by_status, leave


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
