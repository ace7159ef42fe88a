"""What the trial found out: about each model, and of those on a GPU what they take together."""

from __future__ import annotations

import msgspec

from server.engines.engine import Precision


class Finding(msgspec.Struct, tag="finding", frozen=True):
    """One model on the best rung that held; it travels from the trial's child to the master as JSON."""

    key: str
    """`name/version`."""
    platform: str
    rung: str
    why: str
    """Why it is not on the rung above; empty on the first."""
    batched: bool
    """Whether a row alone gives the row's answer in a batch."""
    shapes: list[dict[str, int]]
    """The plan: length by axis for each shape."""
    private_bytes: int
    """What one worker adds for it."""
    bound: str = ""
    """What it raises in another thread than its first; empty where it does not care."""
    device: str = "cpu"
    """What it runs on: `cpu` or `cuda`."""
    graphs: bool = False
    """Whether its shapes are recorded as CUDA graphs."""
    precision: Precision = Precision.FP32
    """What it calculates in."""
    difference: float | None = None
    """The largest difference from float32 on any sample, of any output; None where it calculates in that."""
    compile_seconds: float | None = None
    """What compiling all shapes took, or finding them compiled; None where nothing is compiled."""
    remembered: list[list[int]] = []
    """Shapes met cold before that ran well in the trial; the others are forgotten."""


class Taken(msgspec.Struct, tag="taken", frozen=True):
    """What all models that run on a GPU take of a worker together; the CUDA context, which is one, included."""

    gpu_bytes: int
    """Of its GPU, at the most."""
    private_bytes: int
    """Of the machine's memory."""


NOTHING = Taken(0, 0)
