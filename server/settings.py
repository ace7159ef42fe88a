"""The one table of our settings: name, type, unit, bounds, default, meaning. Everything comes from the environment."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from server.cgroup import cores
from server.exits import ConfigurationError
from server.gpus import Allotment, Gpu, allot, chosen

PREFIX = "WARMFORK_"

# What Kubernetes injects into every pod for a Service whose name starts with "warmfork".
_SERVICE_LINK = re.compile(r"WARMFORK_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")

Parsed = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    parse: Callable[[str], Any]
    """Turns the text into the value; raises `ValueError` whose message is the bound."""
    default: Callable[[Parsed], Any]
    """Gives the value where the environment says nothing, from those that it says and those above in the table."""
    shown: str
    """The default as people read it."""
    unit: str
    bound: str
    meaning: str


def _number(kind: type[int | float], low: float, high: float) -> tuple[Callable[[str], Any], str]:
    bound = f"{low:g} to {high:g}" if kind is float else f"{low} to {high}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            message = f"must be {what} from {bound}"
            raise ValueError(message)
        return value

    return parse, bound


def _integer(meaning: str, low: int, high: int, default: Callable[[Parsed], int], shown: str, unit: str = "") -> Any:
    parse, bound = _number(int, low, high)
    return field(metadata={"setting": Setting(parse, default, shown, unit, bound, meaning)})


def _float(meaning: str, low: float, high: float, default: float, unit: str) -> Any:
    parse, bound = _number(float, low, high)
    return field(metadata={"setting": Setting(parse, lambda _: default, f"{default:g}", unit, bound, meaning)})


def _text(meaning: str, default: str, parse: Callable[[str], Any], bound: str) -> Any:
    return field(metadata={"setting": Setting(parse, lambda _: parse(default), default, "", bound, meaning)})


def _matching(pattern: str, bound: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            message = f"must be {bound}"
            raise ValueError(message)
        return text

    return parse


def _folder(text: str) -> Path:
    if not text:
        message = "must be a folder"
        raise ValueError(message)
    return Path(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB)", text)
    value = int(match[1]) << {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]] if match else 0
    if not 1 <= value <= 16 << 30:
        message = "must be bytes, or KiB, MiB or GiB, from 1 to 16 GiB"
        raise ValueError(message)
    return value


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        message = "must be 0 or 1"
        raise ValueError(message)
    return text == "1"


def _quorum(text: str) -> int | None:
    if text == "all":
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        message = "must be all, or a whole number from 1 to 9999"
        raise ValueError(message)
    return int(text)


_ADDRESS = r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_address = _matching(_ADDRESS, "host:port")


POLITE = 0.2
"""Of the time that a boot may take, how much of it is polite: what is left must do for all of it at full speed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings, read and checked. `read` is the way to make one."""

    models: Path = _text("the model repository", "models", _folder, "a folder")
    workers: int = _integer(
        "workers that take traffic",
        1,
        512,
        lambda s: min(cores(), s.get("max_workers", 512)),
        "one per core (affinity and cgroup quota counted), fewer if memory says so",
    )
    max_workers: int = _integer(
        "the most that TTIN may make; one more is refused in the log",
        1,
        2048,
        lambda s: min(4 * s["workers"], 2048),
        "4 × workers",
    )
    standby: int = _integer("warmed workers held back: the warm pool", 0, 512, lambda _: 0, "0")
    threads: int = _integer(
        "intra-op threads of one worker",
        1,
        512,
        lambda s: min(max(cores() // s["workers"], 1), 512),
        "cores ÷ workers, at least 1",
    )
    device: str = _text(
        "where models run",
        "auto",
        _matching(r"auto|cpu|cuda|cuda:\d{1,3}", "cpu, cuda, cuda:N or auto"),
        "cpu, cuda, cuda:N, auto",
    )
    boot_timeout: float = _float(
        "the time a worker may take from fork to ready, its waits for others not counted", 0.1, 86400, 300, "s"
    )
    ready_quorum: int | None = _text(
        "how many workers of a generation must be proven before it opens", "all", _quorum, "all, 1 to 9999"
    )
    ready_min: int = _integer("how many active workers keep an open server ready", 1, 512, lambda _: 1, "1")
    request_timeout: float = _float("the time a request may take, waiting included", 0.01, 3600, 30, "s")
    max_body: int = _text("the size of one request body, after any decoding", "64 MiB", _size, "1 byte to 16 GiB")
    max_queue: int = _integer("requests waiting in one worker before it answers 503", 0, 1_000_000, lambda _: 256, "256")
    drain: float = _float("the time between readiness going false and the listener closing on SIGTERM", 0, 3600, 0, "s")
    memory_headroom: float = _float("share of the memory limit that must stay free at the warmup peak", 0, 0.95, 0.2, "")
    polite: bool = _text(
        "whether others serve on this machine while this server starts; then it starts behind them", "0", _flag, "0, 1"
    )
    log: str = _text("the form of the log", "text", _matching("text|json", "text or json"), "text, json")
    bind: str = _text("the workers: inference and the `/v2` health routes", "127.0.0.1:8000", _address, "host:port")
    management_bind: str = _text("the management process: probes, metrics, status", "127.0.0.1:8001", _address, "host:port")
    workers_given: bool = False
    """Whether the environment says how many workers, so that memory may not say fewer."""
    gpus: tuple[Gpu, ...] = ()
    """Those that `WARMFORK_DEVICE` means, once NVML has been asked."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read all settings from an environment.

        Raises `ConfigurationError` for a name that is not in the table, a value out of its bound, or two settings that
        contradict each other; the line has the setting, the value and the bound.
        """
        table = rows()
        given = {name: text for name, text in environ.items() if name.startswith(PREFIX) and not _SERVICE_LINK.fullmatch(name)}
        for name, text in given.items():
            if name not in table:
                near = difflib.get_close_matches(name, table, n=1, cutoff=0)[0]
                message = f"{name}={_shown(text)}: no such setting; the nearest is {near}"
                raise ConfigurationError(message)
        values: dict[str, Any] = {}
        for name, text in given.items():
            try:
                values[_attribute(name)] = table[name].parse(text.strip())
            except ValueError as error:
                message = f"{name}={_shown(text)}: {error}"
                raise ConfigurationError(message) from None
        for name, row in table.items():
            values.setdefault(_attribute(name), row.default(values))
        settings = cls(**values, workers_given=PREFIX + "WORKERS" in given)
        settings.check()
        return settings

    @property
    def polite_seconds(self) -> float:
        """How long a worker that boots, or a step of a build, stands back behind those that serve."""
        return POLITE * self.boot_timeout

    @property
    def stop_seconds(self) -> int:
        """How long a graceful stop may take: a request may wait for as long as it may, and then run for as long."""
        return 2 * int(self.request_timeout) + 5

    def with_gpus(self, environ: Mapping[str, str]) -> Self:
        """The same, with the GPUs that there are; raises `ResourceError` where one is asked for that is not there."""
        return replace(self, gpus=chosen(self.device, environ))

    def allotment(self, workers: int, index: int = 0) -> Allotment:
        """What one of so many workers may use of the GPU at `index` of `gpus`."""
        return allot(self.gpus, index, workers, self.memory_headroom)

    def check(self) -> None:
        """Raise `ConfigurationError` where two settings contradict each other."""
        together = self.workers + self.standby
        for name, value, bound, most in (
            ("WORKERS", self.workers, f"WARMFORK_MAX_WORKERS={self.max_workers}", self.max_workers),
            ("READY_MIN", self.ready_min, f"WARMFORK_WORKERS={self.workers}", self.workers),
            ("READY_QUORUM", self.ready_quorum or 0, f"WARMFORK_WORKERS + WARMFORK_STANDBY = {together}", together),
        ):
            if value > most:
                message = f"{PREFIX}{name}={value}: must be at most {bound}"
                raise ConfigurationError(message)
        if self.bind == self.management_bind and not self.bind.endswith(":0"):
            message = f"{PREFIX}MANAGEMENT_BIND={self.management_bind}: must differ from {PREFIX}BIND={self.bind}"
            raise ConfigurationError(message)


def _attribute(name: str) -> str:
    return name.removeprefix(PREFIX).lower()


def _shown(text: str) -> str:
    """A value as an error shows it: a line break in it must not make two lines."""
    return text if text.isprintable() else repr(text)


def rows() -> dict[str, Setting]:
    """The table by environment name, in order."""
    return {PREFIX + row.name.upper(): row.metadata["setting"] for row in fields(Settings) if row.metadata}


def markdown() -> str:
    """The table as the README shows it."""
    lines = ["| name | default | unit | bound | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {row.shown} | {row.unit} | {row.bound} | {row.meaning} |" for name, row in rows().items()]
    return "\n".join(lines) + "\n"
