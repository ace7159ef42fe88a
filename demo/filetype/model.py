"""What comes before and after the network: bytes to tokens, scores to the name of a file type.

The same steps and answers as the Python package magika (https://github.com/google/magika): the network sees the first and
the last bytes of a content; what is too short for it is text or unknown; a score below its type's threshold is not trusted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CONFIG = json.loads(Path(__file__).with_name("config.json").read_text(encoding="utf-8"))
HEAD: int = CONFIG["head"]
TAIL: int = CONFIG["tail"]
BLOCK: int = CONFIG["block"]
PADDING: int = CONFIG["padding"]
SHORTEST: int = CONFIG["shortest"]
LABELS: list[dict[str, Any]] = CONFIG["labels"]
"""Per output of the network: `trusted` is the type from the score `threshold` on, `doubted` the one below it."""


def preprocess(inputs: dict[str, Array]) -> dict[str, Array]:
    """Turn `content`, BYTES [N], into `bytes`, INT32 [N, HEAD + TAIL]: a token per byte, padded between head and tail."""
    contents = inputs["content"]
    tokens = np.full((len(contents), HEAD + TAIL), PADDING, np.int32)
    for row, content in zip(tokens, contents, strict=True):
        head = _start(content)[:HEAD]
        tail = content[-BLOCK:].rstrip()[-TAIL:]
        row[: len(head)] = np.frombuffer(head, np.uint8)
        row[len(row) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return {"bytes": tokens}


def postprocess(outputs: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
    """Turn `target_label`, FP32 [N, labels], into `type`, BYTES [N], and `score`, FP32 [N], with a look at `content`."""
    scores = outputs["target_label"]
    found = [_judge(content, row) for content, row in zip(inputs["content"], scores, strict=True)]
    return {
        "type": np.array([label.encode() for label, _ in found], object),
        "score": np.array([score for _, score in found], np.float32),
    }


def _judge(content: bytes, scores: Array) -> tuple[str, float]:
    """Name the type of one content and how sure that is, from 0 to 1; the network has no say in what is too short for it."""
    if not content:
        return "empty", 1.0
    if len(_start(content)) < SHORTEST:
        return ("txt" if _is_utf8(content[:BLOCK]) else "unknown"), 1.0
    best = int(scores.argmax())
    score = float(scores[best])
    label = LABELS[best]
    return (label["trusted"] if score >= label["threshold"] else label["doubted"]), score


def _start(content: bytes) -> bytes:
    """Return the first block without the white space that it begins with."""
    return content[:BLOCK].lstrip()


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
