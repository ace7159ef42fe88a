"""What the master has to say in words: names and indices of models, the step at hand, reasons. Kept here, put on the page."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from server.exits import ConfigurationError
from server.models.generation import Generation
from server.models.shapes import Shape
from server.notice import ModelNotice, Notice, publish
from server.scoreboard import MODEL_PLACES, Scoreboard


class Words:
    """The one writer of the notice."""

    def __init__(self, board: Scoreboard, relay: Callable[[str], None] | None = None) -> None:
        """Write on `board`. `relay` hears each step as well."""
        self.board = board
        self.relay = relay
        self.doing = ""
        self.reload_refused = self.hand_over_refused = ""
        """Why the last one was refused, until the next; that of a hand-over until a reload is asked for as well."""
        self.missing = ""
        """Why workers are missing."""
        self.order: list[str] = []
        """Models by when they were last built, the newest last."""
        self.building: set[str] = set()
        """Those of the build under way."""
        self.generations: dict[int, Generation] = {}

    def say(self, doing: str) -> None:
        """Put the step at hand on the page; empty when there is none."""
        self.doing = doing
        self.publish()
        if self.relay and doing:
            self.relay(doing)

    def begin(self) -> None:
        """A build begins: what was said of the last one is over."""
        self.reload_refused = ""
        self.building.clear()

    def complain(self, reason: str) -> None:
        """Say why workers are missing; empty when they no longer are."""
        self.missing = reason
        self.publish()

    @property
    def reasons(self) -> list[str]:
        """Why something is not as it was asked for."""
        return [each for each in (self.reload_refused, self.hand_over_refused, self.missing) if each]

    def publish(self) -> None:
        """Put all on the page."""
        generations = {number: _notices(generation) for number, generation in self.generations.items()}
        notice = Notice(generations=generations, doing=self.doing, reasons=self.reasons)
        try:
            publish(self.board, notice)
        except ValueError:  # very many shapes with very long names: the numbers then stand without them
            bare = {
                number: [msgspec.structs.replace(each, shapes=[]) for each in models] for number, models in generations.items()
            }
            publish(self.board, msgspec.structs.replace(notice, generations=bare))

    def index(self, key: str) -> int:
        """Where a model's counters stand; once all places are taken, that of the model that has been gone for longest.

        Raises `ConfigurationError` if no model is gone.
        """
        self.order = [other for other in self.order if other != key] + [key]
        self.building.add(key)
        known = self.board.model_index(key)
        if known is None:
            known = self._free(key)
            self.board.header["names"][0][known] = key.encode()
        return known

    @property
    def serving(self) -> Generation | None:
        """The generation that serves, if one does."""
        return self.generations.get(self.board.get("generation"))

    def _free(self, key: str) -> int:
        names = self.board.header["names"][0]
        unused = np.flatnonzero(names == b"")
        if unused.size:
            return int(unused[0])
        held = {holding.files.key for generation in self.generations.values() for holding in generation.holdings}
        for gone in self.order:
            if gone not in held | self.building:
                index = self.board.model_index(gone)
                self.order.remove(gone)
                if index is not None:
                    self.board.slots["models"][:, index] = 0
                    return index
        message = f"model {key}: counters are kept for {MODEL_PLACES} models at once, all are taken"
        raise ConfigurationError(message)

    def remembered(self) -> dict[str, tuple[Shape, ...]]:
        """The shapes that each model met cold, the newest that the page has room for."""
        found: dict[str, tuple[Shape, ...]] = {}
        for index, name in enumerate(self.board.header["names"][0]):
            rows = self.board.slots["models"]["cold_shapes"][:, index].reshape(
                -1, self.board.slots["models"]["cold_shapes"].shape[-1]
            )
            shapes = {tuple(int(length) for length in row if length) for row in rows if row.any()}
            if name and shapes:
                found[name.decode()] = tuple(sorted(shapes))
        return found


def _notices(generation: Generation) -> list[ModelNotice]:
    return [
        ModelNotice(
            name=holding.files.name,
            version=holding.files.version,
            index=holding.index,
            platform=holding.finding.platform,
            rung=holding.finding.rung,
            why=holding.finding.why,
            batched=holding.finding.batched,
            shapes=holding.finding.shapes,
            private_bytes=holding.finding.private_bytes,
            device=holding.finding.device,
            graphs=holding.finding.graphs,
            precision=holding.finding.precision,
            difference=holding.finding.difference,
            compile_seconds=holding.finding.compile_seconds,
        )
        for holding in generation.holdings
    ]
