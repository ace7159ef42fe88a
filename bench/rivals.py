"""What is measured beside ours: the same app under gunicorn's `gthread`, small apps that one would write without us, nginx."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import load
from bench.client import Connection
from bench.machine import DIES_WITH_US, pinned
from bench.report import Say
from tests.server import ROOT, Server

THREADS = (1, 2, 4, 8, 16, 32)
"""Among which the best is looked for."""
TRIAL_SECONDS = 0.4

_NGINX = """
daemon off;
worker_processes 1;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; return 200 "{answer}"; }}
}}
"""


class Rival(NamedTuple):
    """A gunicorn that is none of ours."""

    port: int
    master: int
    """Its process."""


def gthread(models: Path, threads: int) -> Server:
    """Our app under gunicorn's own `gthread`."""
    return Server(models, "-k", "gthread", "--threads", str(threads))


def best_threads(models: Path, requests: Sequence[tuple[bytes, int]], say: Say) -> list[int]:
    """With how many threads `gthread` answers most of each request, sent on so many connections."""
    rates: list[dict[int, float]] = [{} for _ in requests]
    for threads in THREADS:
        say(f"gthread with {threads} threads")
        with pinned(0), gthread(models, threads) as server, pinned(1):
            for found, (request, connections) in zip(rates, requests, strict=True):
                found[threads] = load.finish(load.start(server.port, request, connections, TRIAL_SECONDS)).rate
    return [max(found, key=found.__getitem__) for found in rates]


@contextmanager
def serve(app: str, model: Path, arguments: str, request: bytes) -> Iterator[Rival]:
    """Serve `bench/<app>.py` with one worker; give it once it has answered `request`."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        [
            *DIES_WITH_US,
            *(sys.executable, "-m", "gunicorn"),
            *f"-w 1 --keep-alive 75 -b 127.0.0.1:0 --no-control-socket {arguments} {app}:app".split(),
        ],
        cwd=ROOT / "bench",  # in the root gunicorn would find our own configuration
        env={**os.environ, "MODEL": str(model), "ORT_DISABLE_TELEMETRY": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            port = next(int(match[1]) for line in process.stderr or () if (match := re.search(r"Listening at: .*:(\d+) ", line)))
            with Connection(port) as connection:
                connection.exchange(request)
            yield Rival(port, process.pid)
        finally:
            process.terminate()


@contextmanager
def nginx(folder: Path, answer: str) -> Iterator[int | None]:
    """Have nginx say `answer` to everything; give its port, or None where it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:  # which nginx inherits, as from an nginx before it
        port = listener.getsockname()[1]
        configuration = folder / "nginx.conf"
        configuration.write_text(_NGINX.format(folder=folder, port=port, answer=answer), encoding="utf-8")
        descriptor = listener.fileno()
        process = subprocess.Popen(  # noqa: S603 - found on the path
            [program, "-e", "stderr", "-c", str(configuration)],
            env={**os.environ, "NGINX": f"{descriptor};"},
            pass_fds=[descriptor],
            stderr=subprocess.DEVNULL,
        )
    with process:
        try:
            yield port
        finally:
            process.terminate()
