"""The management process: probes, metrics and status, read from the shared page. It holds no model and no weights."""
