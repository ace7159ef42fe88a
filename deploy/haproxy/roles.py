"""Who serves and who comes, and whether a shift may begin."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.haproxy import management
from deploy.haproxy.process import Master
from deploy.haproxy.runtime_api import Place, RuntimeApi


class RefusedError(Exception):
    """Why nothing was begun."""


def roles(api: RuntimeApi) -> tuple[Place, Place]:
    """The server that serves and the other one, as HAProxy sees them now."""
    places = api.places()
    serving = [place for place in places if api.traffic(place.name).taken]
    if len(places) != 2 or len(serving) != 1:  # noqa: PLR2004 - blue and green
        names = ", ".join(place.name for place in serving) or "none"
        message = f"of the {len(places)} servers in {api.backend} these take requests: {names}; it must be one of two"
        raise RefusedError(message)
    (other,) = (place for place in places if place not in serving)
    return serving[0], other


def master_of(old: Place, keep: float | None) -> Master | None:
    """The process to end after `keep` seconds, None where it is to run on. Raises `RefusedError` if it is not to be found."""
    if keep is None:
        return None
    if (master := Master.of(old)) is None:
        message = f"{old.name} cannot be ended from here: the master of its workers is not on this machine"
        raise RefusedError(message)
    return master


def free(new: Place) -> None:
    """Raise `RefusedError` where a server is to be started and one runs already."""
    if management.probe(new.management, "/livez")[0]:
        message = f"{new.name} runs already, at {new.management}: end it, or leave out the command to shift to it as it is"
        raise RefusedError(message)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One shift at a time: a lock that the kernel releases, on the folder of HAProxy's socket."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        message = "another shift is under way" if isinstance(error, BlockingIOError) else f"{folder}: {error.strerror}"
        raise RefusedError(message) from None
    try:
        yield
    finally:
        os.close(descriptor)
