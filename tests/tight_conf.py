"""The project's gunicorn configuration on a machine whose memory is as small as the file `LIMIT` says, once there is one."""

import os
import runpy
from pathlib import Path

globals().update(runpy.run_path(str(Path(__file__).parents[1] / "gunicorn.conf.py")))

from server.cgroup import memory_limit  # noqa: E402 - after the configuration, whose first import sets the environment
from server.master import capacity  # noqa: E402


def _tight() -> int:
    file = Path(os.environ["LIMIT"])
    return int(file.read_text(encoding="ascii")) if file.exists() else memory_limit()


vars(capacity)["memory_limit"] = _tight
