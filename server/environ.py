"""Names in the WSGI environ that workers and the app agree on, besides WSGI's own."""

from __future__ import annotations

RECEIVED = "warmfork.received_ns"
"""When the head of the request was there, by the monotonic clock; a worker of gunicorn's own does not say it."""

RESERVE = "warmfork.reserve"
"""Is told of each number of bytes that the app unpacks, and raises `BusyError` where all requests together hold too many."""

HEADER_LENGTH = "HTTP_INFERENCE_HEADER_CONTENT_LENGTH"
"""How many bytes of a body are JSON; what follows is tensors."""
