"""Fixtures of the tests that send raw bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import identity, put
from tests.wire import Kernel


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one model, `echo`, that gives back the number of each row: answers show whose they are."""
    root = tmp_path_factory.mktemp("echo")
    put(root, "echo", identity(width=1))
    return root


@pytest.fixture(scope="session")
def kernel() -> Iterator[Kernel]:
    """Who knows what the server has read."""
    kernel = Kernel()
    yield kernel
    kernel.close()
