"""One worker: how it boots, how it is run by gunicorn."""
