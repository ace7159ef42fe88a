"""Fixtures that several kinds of test share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.repository import make
from tests.models import zoo
from tests.server import Server


@pytest.fixture(scope="session")
def zoo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an identity model per datatype and a few others."""
    root = tmp_path_factory.mktemp("zoo")
    zoo(root)
    make(root, ["filetype"])
    return root


@pytest.fixture(scope="session")
def server(zoo_models: Path) -> Iterator[Server]:
    """A real server of that repository, for tests that do it no harm."""
    with Server(zoo_models, workers=2) as running:
        running.expect(r"model raises/1 failed on a request", "Traceback")
        yield running
