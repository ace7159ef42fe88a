"""The event loop: which descriptors are readable, and who wants to know."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress

Handler = Callable[[int], object]
"""Is given what the kernel says of its descriptor: `select.EPOLLIN` and so on."""


class Loop:
    """Descriptors and their handlers. Level-triggered: what is not read is told again."""

    def __init__(self) -> None:
        """Begin with no descriptors."""
        self.epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}

    def add(self, descriptor: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Tell `handler` of `events`, and always of errors, until `remove`."""
        self.handlers[descriptor] = handler
        self.epoll.register(descriptor, events)

    def modify(self, descriptor: int, events: int) -> None:
        """Tell of other events from now on."""
        self.epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Tell no more; before the descriptor is closed."""
        if self.handlers.pop(descriptor, None):
            with suppress(OSError):  # one that was closed already is gone from the kernel's list
                self.epoll.unregister(descriptor)

    def turn(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds and tell every handler that has news; whether any had."""
        events = self.epoll.poll(timeout)
        handlers = self.handlers
        for descriptor, event, handler in [(descriptor, event, handlers.get(descriptor)) for descriptor, event in events]:
            # A handler before it may have closed this one, and a new connection may have its descriptor.
            if handler and handlers.get(descriptor) is handler:
                handler(event)
        return bool(events)
