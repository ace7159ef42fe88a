"""Finding the model that an address names."""

from __future__ import annotations

import re

from server.models.model import Model
from server.refusals import UnknownModelError
from server.serving import Serving

_VERSION = re.compile(r"[1-9][0-9]{0,18}")


def find(served: Serving, name: str, version: str | None) -> Model:
    """The model at `/v2/models/<name>[/versions/<version>]`; raise `UnknownModelError` if there is none."""
    if version is not None and not _VERSION.fullmatch(version):
        message = f"a version is a positive integer, got {version[:64]!r}"
        raise UnknownModelError(message)
    return served.find(name, version)
