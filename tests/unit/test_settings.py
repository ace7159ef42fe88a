"""The settings: names, defaults and bounds of the contract, what is refused and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import settings
from server.exits import ConfigurationError
from server.settings import Settings

CORES = 8
DEFAULTS = {
    "WARMFORK_MODELS": ("models", Path("models")),
    "WARMFORK_WORKERS": ("one per core (affinity and cgroup quota counted), fewer if memory says so", CORES),
    "WARMFORK_MAX_WORKERS": ("4 × workers", 4 * CORES),
    "WARMFORK_STANDBY": ("0", 0),
    "WARMFORK_THREADS": ("cores ÷ workers, at least 1", 1),
    "WARMFORK_DEVICE": ("auto", "auto"),
    "WARMFORK_BOOT_TIMEOUT": ("300", 300),
    "WARMFORK_READY_QUORUM": ("all", None),
    "WARMFORK_READY_MIN": ("1", 1),
    "WARMFORK_REQUEST_TIMEOUT": ("30", 30),
    "WARMFORK_MAX_BODY": ("64 MiB", 64 << 20),
    "WARMFORK_MAX_QUEUE": ("256", 256),
    "WARMFORK_DRAIN": ("0", 0),
    "WARMFORK_MEMORY_HEADROOM": ("0.2", 0.2),
    "WARMFORK_POLITE": ("0", False),
    "WARMFORK_LOG": ("text", "text"),
    "WARMFORK_BIND": ("127.0.0.1:8000", "127.0.0.1:8000"),
    "WARMFORK_MANAGEMENT_BIND": ("127.0.0.1:8001", "127.0.0.1:8001"),
}


def attribute(name: str) -> str:
    """The attribute of a setting."""
    return name.removeprefix("WARMFORK_").lower()


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cores", lambda: CORES)


def test_defaults() -> None:
    """An empty environment gives every default that is promised, and the table says the same to people."""
    read = Settings.read({"PATH": "/bin", "warmfork_workers": "x"})

    assert {name: getattr(read, attribute(name)) for name in DEFAULTS} == {name: value for name, (_, value) in DEFAULTS.items()}
    assert {name: row.shown for name, row in settings.rows().items()} == {name: shown for name, (shown, _) in DEFAULTS.items()}
    assert not read.workers_given


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WARMFORK_MODELS", "/srv/models", Path("/srv/models")),
        ("WARMFORK_WORKERS", " 3 ", 3),
        ("WARMFORK_READY_QUORUM", "8", 8),
        ("WARMFORK_READY_QUORUM", "all", None),
        ("WARMFORK_DEVICE", "cuda:11", "cuda:11"),
        ("WARMFORK_BOOT_TIMEOUT", "0.5", 0.5),
        ("WARMFORK_MAX_BODY", "1", 1),
        ("WARMFORK_MAX_BODY", "5 KiB", 5 << 10),
        ("WARMFORK_MAX_BODY", "5MiB", 5 << 20),
        ("WARMFORK_MAX_BODY", "16GiB", 16 << 30),
        ("WARMFORK_POLITE", "1", True),
        ("WARMFORK_LOG", "json", "json"),
        ("WARMFORK_BIND", "[::1]:0", "[::1]:0"),
        ("WARMFORK_BIND", "localhost:65535", "localhost:65535"),
    ],
)
def test_value(name: str, text: str, value: object) -> None:
    """What the environment says is read with its unit."""
    assert getattr(Settings.read({name: text}), attribute(name)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "") for name in DEFAULTS),
        ("WARMFORK_STANDBY", "a\nb"),
        ("WARMFORK_BIND", "a\nb"),
        ("WARMFORK_WORKERS", "2.5"),
        ("WARMFORK_WORKERS", "two"),
        ("WARMFORK_DEVICE", "cuda:"),
        ("WARMFORK_DEVICE", "CPU"),
        ("WARMFORK_BOOT_TIMEOUT", "nan"),
        ("WARMFORK_BOOT_TIMEOUT", "inf"),
        ("WARMFORK_READY_QUORUM", "0"),
        ("WARMFORK_READY_QUORUM", "ALL"),
        ("WARMFORK_MAX_BODY", "0"),
        ("WARMFORK_MAX_BODY", "64 MB"),
        ("WARMFORK_MAX_BODY", "17 GiB"),
        ("WARMFORK_MAX_BODY", "-1"),
        ("WARMFORK_LOG", "JSON"),
        ("WARMFORK_BIND", "8000"),
        ("WARMFORK_BIND", "127.0.0.1:65536"),
        ("WARMFORK_BIND", "::1:8000"),
        ("WARMFORK_MANAGEMENT_BIND", "unix:/run/x"),
    ],
)
def test_refused(name: str, text: str) -> None:
    """A value out of its bound is refused in one line that has the setting, the value and the bound."""
    with pytest.raises(ConfigurationError) as refused:
        Settings.read({name: text})

    assert re.match(rf"{name}=.*: must be .", str(refused.value))
    assert "\n" not in str(refused.value)
    assert text.split("\n", maxsplit=1)[0] in str(refused.value)


@pytest.mark.parametrize(
    "name", [name for name, row in settings.rows().items() if " to " in row.bound and row.bound[0].isdigit()]
)
def test_bounds_hold(name: str) -> None:
    """Both ends of the bound that the table shows are inside it, and what is just past them is not."""
    row = settings.rows()[name]
    if name == "WARMFORK_MAX_BODY":  # in bytes and GiB, which `test_value` and `test_refused` look at
        return
    low, high = row.bound.split(" to ")

    assert row.parse(low) == float(low)
    assert row.parse(high) == float(high)
    for past in (float(low) - 0.001, float(high) + 1):
        with pytest.raises(ValueError, match="must be"):
            row.parse(f"{past:f}" if past % 1 else f"{past:.0f}")


@pytest.mark.parametrize("name", list(DEFAULTS))
@given(text=st.text(max_size=20) | st.integers().map(str) | st.floats().map(str))
def test_any_text(name: str, text: str) -> None:
    """Whatever the environment says is read or refused as a wrong configuration, never anything else."""
    try:
        read = Settings.read({name: text})
    except ConfigurationError as refused:
        assert name in str(refused)  # noqa: PT017 - most texts are refused, some are not
    else:
        assert getattr(read, attribute(name)) == settings.rows()[name].parse(text.strip())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WARMFORK_WORKER", "WARMFORK_WORKERS"),
        ("WARMFORK_MAXBODY", "WARMFORK_MAX_BODY"),
        ("WARMFORK_BOOT_TIME_OUT", "WARMFORK_BOOT_TIMEOUT"),
        ("WARMFORK_workers", "WARMFORK_"),
        ("WARMFORK_", "WARMFORK_"),
        ("WARMFORK_PORTS", "WARMFORK_"),
        ("WARMFORK_PORT_X_TCP", "WARMFORK_"),
        ("WARMFORK_SERVICE_HOSTS", "WARMFORK_"),
    ],
)
def test_unknown(name: str, nearest: str) -> None:
    """A name that is not in the table stops the start, and the line has the nearest one that is."""
    with pytest.raises(ConfigurationError, match=rf"^{name}=1: no such setting; the nearest is {nearest}"):
        Settings.read({name: "1"})


@pytest.mark.parametrize("service", ["", "CANARY_", "A_B_"])
@pytest.mark.parametrize(
    "link",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_8000_TCP",
        "PORT_8000_TCP_PROTO",
        "PORT_8000_TCP_PORT",
        "PORT_8000_TCP_ADDR",
        "PORT_53_UDP_ADDR",
    ],
)
def test_service_links(service: str, link: str) -> None:
    """What Kubernetes injects for a Service called warmfork is no setting of ours."""
    assert Settings.read({f"WARMFORK_{service}{link}": "tcp://10.0.0.1:8000"}) == Settings.read({})


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"WORKERS": "3", "MAX_WORKERS": "2"}, "WARMFORK_WORKERS=3: must be at most WARMFORK_MAX_WORKERS=2"),
        ({"WORKERS": "2", "READY_MIN": "3"}, "WARMFORK_READY_MIN=3: must be at most WARMFORK_WORKERS=2"),
        ({"WORKERS": "2", "STANDBY": "1", "READY_QUORUM": "4"}, "WARMFORK_READY_QUORUM=4: must be at most .* = 3"),
        (
            {"BIND": "h:8000", "MANAGEMENT_BIND": "h:8000"},
            "WARMFORK_MANAGEMENT_BIND=h:8000: must differ from WARMFORK_BIND=h:8000",
        ),
    ],
)
def test_contradictions(environ: dict[str, str], line: str) -> None:
    """Two settings that contradict each other are refused, and the line has both."""
    with pytest.raises(ConfigurationError, match=f"^{line}$"):
        Settings.read({f"WARMFORK_{name}": text for name, text in environ.items()})


def test_agreements() -> None:
    """At their bounds the same settings agree, and two ports of the kernel's choice are not one."""
    environ = {"WORKERS": "2", "STANDBY": "1", "READY_QUORUM": "3", "MAX_WORKERS": "2", "READY_MIN": "2"}
    environ |= {"BIND": "h:0", "MANAGEMENT_BIND": "h:0"}

    read = Settings.read({f"WARMFORK_{name}": text for name, text in environ.items()})

    assert (2, 1, 3, True) == (read.workers, read.standby, read.ready_quorum, read.workers_given)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, "2", 4), (8, "3", 2), (1, "4", 1), (2000, "2", 512)])
def test_threads(monkeypatch: pytest.MonkeyPatch, cores: int, workers: str, threads: int) -> None:
    """Cores that have no worker of their own become threads, within the bound."""
    monkeypatch.setattr(settings, "cores", lambda: cores)

    assert threads == Settings.read({"WARMFORK_WORKERS": workers}).threads


def test_big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default keeps to the bound that a given value has."""
    monkeypatch.setattr(settings, "cores", lambda: 1024)

    read = Settings.read({})

    assert (512, 2048) == (read.workers, read.max_workers)


def test_readme() -> None:
    """The README's table is the one in the code."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

    assert settings.markdown().strip() == readme.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()


def test_markdown() -> None:
    """The table has a row of five cells for each setting, in order."""
    lines = settings.markdown().splitlines()

    assert [f"`{name}`" for name in settings.rows()] == [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert {6} == {line.count("|") for line in lines}
