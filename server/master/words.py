"""What the master has to say in words: names and indices of models, the step at hand, reasons. Kept here, put on the page."""

from __future__ import annotations

import msgspec

from server.exits import ConfigurationError
from server.models.generation import Generation
from server.models.shapes import Shape
from server.notice import ModelNotice, Notice, publish
from server.scoreboard import MAX_MODELS, Scoreboard


class Words:
    """The one writer of the notice."""

    def __init__(self, board: Scoreboard) -> None:
        """Write on `board`."""
        self.board = board
        self.doing = ""
        self.reasons: list[str] = []
        self.missing = ""
        self.generations: dict[int, Generation] = {}

    def say(self, doing: str) -> None:
        """Put the step at hand on the page; empty when there is none."""
        self.doing = doing
        self.publish()

    def complain(self, reason: str) -> None:
        """Say why workers are missing; empty when they no longer are. Why a reload was refused stays until the next one."""
        self.missing = reason
        self.publish()

    def publish(self) -> None:
        """Put all on the page."""
        generations = {number: _notices(generation) for number, generation in self.generations.items()}
        reasons = [*self.reasons, self.missing] if self.missing else self.reasons
        notice = Notice(generations=generations, doing=self.doing, reasons=reasons)
        try:
            publish(self.board, notice)
        except ValueError:  # very many shapes with very long names: the numbers then stand without them
            bare = {
                number: [msgspec.structs.replace(each, shapes=[]) for each in models] for number, models in generations.items()
            }
            publish(self.board, msgspec.structs.replace(notice, generations=bare))

    def index(self, key: str) -> int:
        """Where a model's counters stand as long as the master lives; raises `ConfigurationError` when all are taken."""
        known = self.board.model_index(key)
        if known is not None:
            return known
        names = self.board.header["names"][0]
        for index in range(MAX_MODELS):
            if not names[index]:
                names[index] = key.encode()
                return index
        message = f"model {key}: there are counters for {MAX_MODELS} models in the life of a master, all are taken"
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
        )
        for holding in generation.holdings
    ]
