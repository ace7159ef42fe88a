"""What ARCHITECTURE.md says in tables is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from server.states import TABLE, Event, State

ROOT = Path(__file__).parents[2]


def _rows(text: str, name: str) -> list[list[str]]:
    table = text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_states() -> None:
    """Every move of the table of states is in the picture, and nothing else is."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn: dict[tuple[State, Event], State] = {}
    for states, event, after in _rows(text, "states"):
        names = [state.name.lower() for state in State if state] if states == "every state but empty" else states.split(", ")
        drawn |= {(State[name.upper()], Event[event.upper()]): State[after.upper()] for name in names}

    assert TABLE == drawn


def test_worker() -> None:
    """The table of the worker's files has each of them once, and no other."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "server" / "worker").glob("*.py")} - {"__init__.py"}

    assert sorted(files) == sorted(name.strip("`") for name, _ in _rows(text, "worker"))


def test_places() -> None:
    """Every file and folder that the table of places names is there, and every package is named."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## Where things live")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+/(?:[\w./]+\.py|[\w./]*/)?|\w[\w.]+\.conf\.py)`", table)

    assert [place for place in named if not (ROOT / place).exists()] == []
    assert {f"server/{folder.name}/" for folder in (ROOT / "server").iterdir() if (folder / "__init__.py").exists()} <= set(named)
