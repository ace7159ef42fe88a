"""What this worker does not serve is refused at the start, in one sentence that says what does."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from http.client import HTTPSConnection
from pathlib import Path
from shutil import which

import pytest

from tests.models import identity, put
from tests.server import ROOT, Server

ASK = """
import logging, runpy, sys
from gunicorn.config import Config
from gunicorn.util import load_class
from server.exits import ConfigurationError, leave
config = Config()
config.set("http_protocols", sys.argv[1])
try:
    load_class(runpy.run_path("gunicorn.conf.py")["worker_class"]).check_config(config, logging.getLogger())
except ConfigurationError as error:
    leave(error)
"""
SENTENCE = r"[^.]*(gthread[^.]*proxy|proxy[^.]*gthread)[^.]*"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate of our own for the loopback address, and its key."""
    program = which("openssl")
    assert program, "openssl makes the certificate of this test"
    key, made = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", made, *subject]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def test_tls_is_refused(tmp_path: Path, certificate: tuple[str, str]) -> None:
    """A certificate for our worker ends the start with 78 and the sentence."""
    put(tmp_path / "models", "m", identity())
    made, key = certificate
    with Server(tmp_path / "models", "--certfile", made, "--keyfile", key, ready=False) as server:
        server.clean(78)
    (line,) = [line for line in server.lines if "INFO" not in line]
    assert re.search(f"TLS{SENTENCE}", line)


def test_tls_by_gthread(tmp_path: Path, certificate: tuple[str, str]) -> None:
    """What the sentence names works: the same app behind the same certificate."""
    put(tmp_path / "models", "m", identity())
    made, key = certificate
    with Server(tmp_path / "models", "-k", "gthread", "--certfile", made, "--keyfile", key) as server:
        port = int(server.wait_log(r"Listening at: https://127\.0\.0\.1:(\d+)")[1])
        connection = HTTPSConnection("127.0.0.1", port, context=ssl.create_default_context(cafile=made), timeout=30)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize("protocols", ["h2", "h2,h1", "h1,h2"])
def test_http2_is_refused(protocols: str) -> None:
    """HTTP/2 is refused as well, by what gunicorn asks of a worker class (after it has looked for a library of its own)."""
    found = subprocess.run([sys.executable, "-c", ASK, protocols], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 78, found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert re.search(f"HTTP/2{SENTENCE}", found.stderr)
    assert subprocess.run([sys.executable, "-c", ASK, "h1"], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_plain_is_served(tmp_path: Path) -> None:
    """Without either of them nothing is refused."""
    put(tmp_path, "m", identity())
    with Server(tmp_path) as server:
        assert server.request("GET", "/v2/health/ready")[0] == 200
