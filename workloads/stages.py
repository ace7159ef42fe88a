"""The servers that each script needs, the options it is given, and what it found: `make load`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import distribution
from math import isfinite, nan
from pathlib import Path

import msgspec

from bench import load, repository, rivals
from bench.client import infer
from bench.embed import MODEL, PACKAGE
from bench.report import Figure, Report, Say
from workloads.children import finish, server
from workloads.fleet import PROGRAM
from workloads.run import INPUTS
from workloads.watch import Ours, ended, until

RESULTS = Path("load-results")
MODELS: Mapping[str, Callable[[Path], Path]] = {"resnet50": repository.resnet50, "embed": repository.embed}
MOST = 6
"""To how many a scale-out goes."""
_BOOT = 300.0
"""Seconds in which a server must be ready, on a machine with fewer cores than workers."""
_HUPS = 20
"""In which memory is to stay flat."""
_CAPACITY = (2, 3.0)
"""Connections and seconds of the closed loop that looks for it."""
PLAIN = "-k gthread --threads 16 --preload --graceful-timeout 35"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Seconds of a window."""

    window: float
    scale_out: float


FULL = Lengths(20, 120)
QUICK = Lengths(4, 8)


class Stage:
    """One model, and the scripts that are run against servers of it."""

    def __init__(self, model: str, folder: Path, lengths: Lengths, say: Say) -> None:
        """Make the model in `folder` unless it is there."""
        self.model = model
        self.lengths = lengths
        self.say = say
        self.models = MODELS[model](folder)
        self.request = infer(model, INPUTS[model]())

    @cached_property
    def rate(self) -> float:
        """Requests per second: half of what one worker answers at most."""
        self.say("looking for the capacity of one worker")
        with server(self.models, ready=False) as alone:
            alone.wait_ready(_BOOT)
            connections, seconds = _CAPACITY
            found = load.finish(load.start(alone.port, self.request, connections, seconds)).rate
        self.say(f"{found:.1f} requests/s; half of that are sent")
        return found / 2

    def steady(self) -> dict[str, Report]:
        """One worker, nothing happens."""
        return self._ours("steady")

    def hostile(self) -> dict[str, Report]:
        """One worker, bad clients."""
        return self._ours("hostile")

    def crash(self) -> dict[str, Report]:
        """Two workers and a standby, and a plain gunicorn with two."""
        return self._ours("crash", workers=2, standby=1) | self._plain("crash", workers=2)

    def reload(self) -> dict[str, Report]:
        """Two workers; of a plain gunicorn HUP alone."""
        return self._ours("reload", "--repository", str(self.models), "--hups", str(_HUPS), workers=2) | self._plain(
            "reload", workers=2
        )

    def scale_out(self) -> dict[str, Report]:
        """One worker that becomes six."""
        options = ("-u", "32", "--most", str(MOST))
        seconds = self.lengths.scale_out
        ours = self._ours("scale_out", *options, seconds=seconds, max_workers=MOST)
        return ours | self._plain("scale_out", *options, seconds=seconds, workers=1)

    def haproxy(self) -> dict[str, Report]:
        """One server that becomes six."""
        if PROGRAM is None:
            message = "haproxy is not installed"
            raise FileNotFoundError(message)
        options = ("-u", "32", "--most", str(MOST), "--haproxy", str(self.models))
        return self._locust("scale_out", "behind haproxy", *options, rate=self.rate, seconds=self.lengths.scale_out)

    def _ours(self, script: str, *options: str, seconds: float = 0, **settings: object) -> dict[str, Report]:
        rate = self.rate  # looked for before the server is there
        with server(self.models, ready=False, **settings) as ours:
            ours.wait_ready(_BOOT)
            ours.expect("")  # what its log says is what the tests look at
            management = f"http://127.0.0.1:{ours.management_port}"
            found = self._locust(script, "", "-H", ours.url, "--management", management, *options, rate=rate, seconds=seconds)
            if ours.process.poll() is not None:  # another master has taken over
                master = Ours(management).pid()
                os.kill(master, signal.SIGTERM)
                until(lambda: ended(master), "the end of the last master")
        return found

    def _plain(self, script: str, *options: str, seconds: float = 0, workers: int) -> dict[str, Report]:
        app, model = "plain_app", self.models / self.model / "1" / "model.onnx"
        if self.model == "embed":
            app, model = "plain_embed_app", Path(str(distribution(PACKAGE).locate_file(MODEL)))
        rate = self.rate
        with rivals.serve(app, model, f"{PLAIN} -w {workers}", self.request) as rival:
            place = ("-H", f"http://127.0.0.1:{rival.port}", "--plain", str(rival.master))
            found = self._locust(script, "plain gunicorn", *place, *options, rate=rate, seconds=seconds)
        # It is shown beside ours and has nothing to hold, but must have been measured.
        return {name: replace(report, figures=[_shown(each) for each in report.figures]) for name, report in found.items()}

    def _locust(self, script: str, where: str, *options: str, rate: float, seconds: float) -> dict[str, Report]:
        """Run a script; give what it found by its title."""
        title = "-".join([script, self.model, *where.split()])
        self.say(f"{script}, {where or 'ours'}")
        path = RESULTS / f"{title}.json"
        path.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "locust", "-f", f"workloads/{script}.py", "--headless", "--only-summary"),
            *("--skip-log-setup", "--title", title, "--results", str(RESULTS), "--model", self.model),
            *("--rate", f"{rate:.2f}", "--window", str(seconds or self.lengths.window), *options),
        ]
        return {title: read(path, finish(command))}


def _shown(figure: Figure) -> Figure:
    return replace(figure, bound=None, least=None, failed=figure.failed or not isfinite(figure.value))


def read(path: Path, status: int) -> Report:
    """What a script wrote before it ended with `status`. It has failed if that says other than its figures, or there are none."""
    if not path.exists():
        return Report([Figure("status with which the script ended, without a result", status, failed=True)])
    content = msgspec.json.decode(path.read_bytes())
    figures = [Figure(**{**each, "value": nan if each["value"] is None else each["value"]}) for each in content["figures"]]
    report = Report(figures, content["control"], content["details"])
    if status != int(report.broken):
        report.figures.append(Figure("status with which the script ended, against its figures", status, failed=True))
    return report
