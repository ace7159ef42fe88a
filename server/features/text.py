"""Text in front of a model: bytes in, token ids in length buckets out, by the library `tokenizers`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from server.exits import AskedToStopError, ConfigurationError, ExitError
from server.refusals import BadInputError
from server.tensors import Array, TensorSpec

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
"""What a model calls what a tokenizer gives; a model has the first and may have the others."""

MOST_TEXTS = 1024
"""In one request, where nobody declared batch sizes."""

PADS = ("[PAD]", "<pad>", "<|pad|>")
"""What padding is called where a tokenizer does not say."""

PROSE = (
    "The harbour was quiet when the first boats came home. Gulls followed them along the wall, and somebody had already lit the "
    "lamp above the door of the old customs house. We waited with our coats on and talked about the price of coal, about the "
    "winter of 1962, and whether the new ferry would ever run on time. A dog slept in the sun; nobody minded. Later it rained, "
    "as it nearly always does in April, and the children ran inside to finish the map that they had drawn on the kitchen floor: "
    "three islands, a lighthouse, and a road that went all the way round without once meeting itself."
)
"""What is tokenized before any client sends a text: words, numbers and punctuation as they come in sentences."""


class Text:
    """A tokenizer for one model. Safe from several threads; made once in the master and shared."""

    def __init__(self, path: Path, name: str, *, longest: int, truncates: bool, pad: str | None) -> None:
        """Read `tokenizer.json` at `path`; clients send their texts, of up to `longest` bytes, as the tensor `name`.

        `truncates`: whether a text of too many tokens is cut, and not refused. `pad`: the token to pad with, if not the
        tokenizer's own.

        Raises `ConfigurationError` naming the file and the check.
        """
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - not everybody serves text

            self.tokenizer = Tokenizer.from_file(str(path))
        except (AskedToStopError, ExitError, MemoryError):
            raise
        except ModuleNotFoundError as error:
            message = f"{path}: [text] needs {error.name}, which is not installed (see pyproject.toml)"
            raise ConfigurationError(message) from None
        except BaseException as error:  # noqa: BLE001 - the library raises nothing narrower, and its panics are no `Exception`
            message = f"{path}: not a tokenizer: {' '.join(str(error).split())[:300]}"
            raise ConfigurationError(message) from None
        padding = self.tokenizer.padding or {}
        if padding.get("direction", "right") != "right":
            message = f"{path}: pads on the left, which length buckets cannot: they grow to the right"
            raise ConfigurationError(message)
        known = [word for word in (pad, padding.get("pad_token"), *PADS) if word]
        ids = [self.tokenizer.token_to_id(word) for word in known]
        if (pad and ids[0] is None) or all(number is None for number in ids):
            message = f"{path}: has no token {' or '.join(map(repr, known[:1] if pad else known))} to pad with (text.pad)"
            raise ConfigurationError(message)
        self.pad: int = next(number for number in ids if number is not None)
        self.name = name
        self.longest = longest
        self.truncates = truncates
        self.rows = self.tokens = 0
        """How many texts there may be at once, and how many tokens a text may have; see `fit`."""
        self.width: int | None = None
        self.cut: str = (self.tokenizer.truncation or {}).get("direction", "right")
        """At which end a text is cut."""
        self.tokenizer.no_padding()

    def fit(self, rows: int, tokens: int, *, fixed: bool) -> None:
        """Take up to `rows` texts at once, and give up to `tokens` tokens of each; `fixed`: always as many."""
        self.rows = rows
        self.tokens = tokens
        self.width = tokens if fixed else None
        if self.truncates:
            self.tokenizer.enable_truncation(tokens, direction=self.cut)
        else:
            self.tokenizer.no_truncation()

    def encode(self, texts: Array, specs: Iterable[TensorSpec]) -> dict[str, Array]:
        """Tokenize `texts`, an object array of bytes [rows], into what `specs` names: [rows, the longest row's length].

        Raises `BadInputError` for more texts than there may be, and naming the row for one that is no UTF-8 or is too long.
        """
        if len(texts) > self.rows:  # before any is looked at: tokens take many times the room of texts
            message = f"input {self.name!r} may have {self.rows} texts, has {len(texts)}"
            raise BadInputError(message)
        encodings = self.tokenizer.encode_batch_fast([self._decoded(row, text) for row, text in enumerate(texts)])
        lengths = [len(encoding.ids) for encoding in encodings]
        for row, length in enumerate(lengths):
            if length > self.tokens:
                message = f"input {self.name!r}, row {row}: a text may have {self.tokens} tokens, has {length}"
                raise BadInputError(message)
        shape = (len(encodings), self.width or max([1, *lengths]))
        made = {IDS: np.full(shape, self.pad, np.int64), MASK: np.zeros(shape, np.int64), TYPES: np.zeros(shape, np.int64)}
        for row, encoding in enumerate(encodings):
            place = slice(lengths[row])
            made[IDS][row, place] = encoding.ids
            made[MASK][row, place] = 1
            made[TYPES][row, place] = encoding.type_ids
        return {spec.name: made[spec.name].astype(spec.dtype, copy=False) for spec in specs if spec.name in made}

    @property
    def fills(self) -> Mapping[str, int]:
        """What the model's tensors are padded with, where that is not zero."""
        return {IDS: self.pad}

    def length(self, specs: Iterable[TensorSpec], lengths: Mapping[str, int]) -> int:
        """How many tokens a text has in a shape of `lengths`."""
        axis = next(spec.axes[1] for spec in specs if spec.name == IDS)
        return lengths[axis] if axis else self.tokens

    def sentences(self, lengths: Sequence[int]) -> Array:
        """Real text, a row per length: as many words as fit into so many tokens, each row another."""
        made = np.empty(len(lengths), object)
        for row, length in enumerate(lengths):
            words = list(islice(cycle(PROSE.split()), row * 7, row * 7 + length))
            counts = range(1, len(words) + 1)
            fitting = bisect_right(counts, length, key=lambda count: self._length(words[:count]))
            text = " ".join(words[: max(fitting, 1)])
            while len(text) > 1 and (len(text) > self.longest or self._length([text]) > length):
                text = text[:-1]
            made[row] = text.encode()
        return made

    def _length(self, words: Sequence[str]) -> int:
        return len(self.tokenizer.encode(" ".join(words)).ids)

    def _decoded(self, row: int, text: bytes) -> str:
        if len(text) > self.longest:
            message = f"input {self.name!r}, row {row}: a text may have {self.longest} bytes (text.max_bytes), has {len(text)}"
            raise BadInputError(message)
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            message = f"input {self.name!r}, row {row}: not UTF-8 (byte {error.start}: {error.reason})"
            raise BadInputError(message) from None
