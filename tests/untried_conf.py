"""The project's gunicorn configuration with nothing tried before it is forked: every model is taken to be shareable live."""

import runpy
from pathlib import Path

globals().update(runpy.run_path(str(Path(__file__).parents[1] / "gunicorn.conf.py")))

from collections.abc import Iterator, Sequence  # noqa: E402 - after the configuration, whose first import sets the environment
from contextlib import contextmanager  # noqa: E402

import server.engines.torch_module  # noqa: E402, F401 - so that a short deadline is that of the workers alone
from server.engines.catalogue import engine_for  # noqa: E402
from server.master import build, workforce  # noqa: E402
from server.models.finding import Finding  # noqa: E402
from server.models.repository import ModelFiles  # noqa: E402
from server.warmup.child import ThrowAwayChild  # noqa: E402
from server.warmup.messages import Say  # noqa: E402


def _untried(found: Sequence[ModelFiles], *_: object, **__: object) -> ThrowAwayChild:
    def work(say: Say) -> None:
        for files in found:
            say(Finding(files.key, engine_for(files.path).platform, "live", "", batched=True, shapes=[], private_bytes=0))

    return ThrowAwayChild("nothing", work, 60)


@contextmanager
def _unlooked(*_: object) -> Iterator[None]:
    yield


IN_PLACE = {
    "trial": _untried,
    "survival": lambda *_, **__: ThrowAwayChild("nothing", lambda _: None, 60),
    "fork_safe": _unlooked,
    "unsafe": lambda: "",
}
for module in (build, workforce):
    for name in IN_PLACE.keys() & vars(module):
        setattr(module, name, IN_PLACE[name])
