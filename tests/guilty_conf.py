"""The project's gunicorn configuration with a hook that initialises CUDA in the master."""

import runpy
from pathlib import Path
from typing import Any

globals().update(runpy.run_path(str(Path(__file__).parents[1] / "gunicorn.conf.py")))

import torch  # noqa: E402 - after the configuration, whose first import sets the environment

_innocent: Any = globals()["when_ready"]


def when_ready(arbiter: Any) -> None:
    """What no hook may do, after what it should."""
    _innocent(arbiter)
    torch.cuda.init()  # type: ignore[no-untyped-call]
