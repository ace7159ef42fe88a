"""The form of the log: gunicorn's own text for people, or JSON for machines (`WARMFORK_LOG`)."""

from __future__ import annotations

from gunicorn.config import Config
from gunicorn.glogging import Logger
from pythonjsonlogger.json import JsonFormatter

LOGGERS = {"text": "server.logs.TextLogger", "json": "server.logs.JsonLogger"}
"""What `logger_class` is for each value of `WARMFORK_LOG`."""

_FIELDS = "%(asctime)s %(process)d %(levelname)s %(message)s"
_NAMES = {"asctime": "time", "levelname": "level", "process": "pid"}


class TextLogger(Logger):
    """gunicorn's logger."""

    def close_on_exec(self) -> None:
        """Nothing, since Python's files are so by themselves.

        gunicorn would look up every logger that there is, and torch has hundreds: each worker would copy all their pages.
        """


class JsonLogger(TextLogger):
    """gunicorn's logger, one JSON text a line."""

    def setup(self, cfg: Config) -> None:
        """Set gunicorn's handlers up, then have them write JSON."""
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            for handler in logger.handlers:
                handler.setFormatter(JsonFormatter(_FIELDS, rename_fields=_NAMES))
