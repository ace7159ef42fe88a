"""Why a request is not answered with a result: one class per status."""

from __future__ import annotations

from typing import ClassVar


class RefusalError(Exception):
    """A request that gets an error. The message goes to the client: what is wrong, the name, the bound and what came."""

    status: ClassVar[int] = 500
    retry_after: int | None = None
    """Seconds, where trying again makes sense."""


class BadInputError(RefusalError):
    """The request does not fit the model or the protocol."""

    status = 400


class UnknownModelError(RefusalError):
    """No such model or version."""

    status = 404


class TooLargeError(RefusalError):
    """The body is over `WARMFORK_MAX_BODY`."""

    status = 413


class BusyError(RefusalError):
    """The queue is full, memory ran out for this request, or the server is going away."""

    status = 503
    retry_after = 1


class SlowError(RefusalError):
    """The request did not come in time."""

    status = 408


class LateError(RefusalError):
    """`WARMFORK_REQUEST_TIMEOUT` passed."""

    status = 504


class ModelFailedError(RefusalError):
    """The model raised, or gave what cannot be sent."""

    status = 500


class AbandonedError(BaseException):
    """The client is gone: nobody waits for this request any more. No `Exception`, so that nothing tries to answer it."""


def too_large(came: str, limit: int) -> str:
    """Say that a body is over the bound."""
    return f"the body must be at most {limit} bytes (WARMFORK_MAX_BODY), got {came}"
