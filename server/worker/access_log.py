"""gunicorn's access log, for requests that have no objects of gunicorn's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Protocol

from gunicorn.glogging import Logger

from server.worker.head import Environ


class Told(Protocol):
    """What the log says of an answer."""

    status: str
    sent: int

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The fields of its head."""


class AccessLog:
    """One line for each answer, or whatever the operator's `logger_class` makes of it."""

    def __init__(self, log: Logger) -> None:
        """Write to `log`."""
        self.log: Any = log  # its types know gunicorn's own objects only
        self.on = log.access_log_enabled or type(log).access is not Logger.access

    def write(self, answer: Told, environ: Environ, received_ns: int) -> None:
        """Write of the answer to the request that came at `received_ns`, if anything was said."""
        if self.on and answer.status:
            fields = [(key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")]
            fields += [(key.replace("_", "-"), environ[key]) for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if key in environ]
            took = timedelta(microseconds=(time.monotonic_ns() - received_ns) // 1000)
            self.log.access(answer, SimpleNamespace(headers=fields), environ, took)
