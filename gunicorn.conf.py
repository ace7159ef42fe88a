"""How gunicorn runs warmfork. Our own settings are environment variables (see the README); gunicorn's are these."""

from server import environment  # first: it tells the libraries below us to start no threads  # noqa: F401, I001
from hooks.master import child_exit, on_exit, on_starting, pre_exec, pre_fork, settings, when_ready  # noqa: F401
from hooks.worker import post_fork, post_worker_init, worker_exit  # noqa: F401
from server.logs import LOGGERS

_settings = settings()

bind = _settings.bind
workers = _settings.workers + _settings.standby
worker_class = "server.worker.batching.BatchingWorker"
wsgi_app = "server.api.app:application"
http_parser = "python"  # the C parser takes lines that end in LF alone; our worker uses it where that is looked at
proc_name = "warmfork"

worker_connections = 1000
keepalive = 75
backlog = 2048
forwarder_headers = ""  # no header of a client or a proxy says where the app lives

# A worker whose loop stands still for longer than a run may take is ended.
timeout = max(30, int(_settings.request_timeout) + 5)
graceful_timeout = _settings.stop_seconds
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a heartbeat must not wait for a disk

preload_app = False  # the app is built around what `when_ready` has loaded
reuse_port = False  # it would send connections to workers that are not ready
control_socket_disable = True  # its thread in the master would make every later fork unsafe

logger_class = LOGGERS[_settings.log]
