"""Texts to compare two encoders by: of all lengths, in several scripts, with what only looks like a token."""

from __future__ import annotations

import random
from collections.abc import Sequence

TEXTS = 500
MOST_WORDS = 300
WORDS = (
    "the a of and river stone quantum committee yesterday running unbelievable 3.14 $100 don't hello-world SELECT * naïve Straße "
    "e\u0301cole über Привет мир 猫は 今日 हिन्दी אבג 👋🏽 \ufb01 \u2167 \u200b \x00 [SEP] [PAD] <unk> \ufffd"
)
ALIKE = (
    ("A man is eating food.", "Someone has a meal."),
    ("The weather is lovely today.", "It is so sunny outside!"),
    ("The stock market fell again.", "Share prices dropped once more."),
    ("A cat sleeps on the sofa.", "On the couch a kitten is napping."),
)


def texts_of_all_lengths() -> list[str]:
    """Texts of no word to many, half of them short; the same ones every time."""
    generator = random.Random(1)  # noqa: S311 - nothing is secret
    words = WORDS.split(" ")
    lengths = [0, 0, 0, *(round(MOST_WORDS ** generator.random()) for _ in range(TEXTS - 3))]
    return [" ".join(generator.choices(words, k=length)) for length in lengths]


def groups_of(texts: Sequence[str], most: int) -> list[Sequence[str]]:
    """The texts in their order, in groups of all sizes."""
    generator = random.Random(2)  # noqa: S311 - nothing is secret
    groups: list[Sequence[str]] = []
    while texts:
        size = generator.randint(1, most)
        groups.append(texts[:size])
        texts = texts[size:]
    return groups
