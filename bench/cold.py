"""No cold request: a worker's first answer in every shape against its steady ones, over HTTP, beside the same without warmup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import repository, torch_repository
from bench.client import infer
from bench.first import ROUNDS, Both, Case, Starts, both
from bench.report import Figure, Report, Say

BOUND = 1.25
"""The most that a first request may take, in steady ones."""
STARTS_OF_FOUR = 1


def run(folder: Path, say: Say) -> Report:
    """Measure starts of one worker and of four, and of each engine, with and without warmup in turn."""
    say("making the models")
    images = {str(size): infer("resnet50", repository.image(size)) for size in repository.SIZES}
    rows = {str(size): infer("dense", repository.row(size)) for size in repository.SIZES}
    resnet50, small, embed = repository.resnet50(folder), repository.small(folder), repository.embed(folder)
    one = both(Case("resnet50, one worker", resnet50, images), say)
    four = both(Case("resnet50, four workers", resnet50, images, STARTS_OF_FOUR, workers=4), say)
    tiny = both(Case("dense 64, one worker", small, rows, rounds=20 * ROUNDS, pauses=ROUNDS), say)
    batches, lengths = repository.embed_shapes(embed)
    texts = _texts(batches, lengths)
    text = both(Case("embed, one worker", embed, texts, controls=1), say)
    text_four = both(Case("embed, four workers", embed, texts, STARTS_OF_FOUR, workers=4), say)
    forms: dict[str, Both] = {form: both(_form(folder, form), say) for form in torch_repository.FORMS}
    forms_four: dict[str, Both] = {
        form: both(replace(_form(folder, form), what=f"resnet50, {form}, four workers", starts=STARTS_OF_FOUR, workers=4), say)
        for form in torch_repository.FORMS
    }
    return Report(
        [
            _figure("resnet50: first ÷ steady, one worker", one, _ratio, BOUND),
            _figure("resnet50: the process's very first ÷ steady", one, _very_first),
            _figure("resnet50: first ÷ steady, each of four workers", four, _ratio, BOUND),
            _figure("resnet50: worst first ÷ steady of them all", (one[0] + four[0], one[1] + four[1]), _worst),
            _figure("dense 64: first ÷ steady, one worker", tiny, _ratio),
            _figure("dense 64: the process's very first ÷ steady", tiny, _very_first),
            _figure("dense 64: one after a pause ÷ steady", tiny, _rested),
            *(_figure(f"embed: first ÷ steady, {length} tokens", _of(text, length), _ratio, BOUND) for length in lengths),
            _figure("embed: the process's very first ÷ steady", text, _very_first),
            _figure("embed: first ÷ steady, each of four workers", text_four, _ratio, BOUND),
            *(_figure(f"resnet50, {form}: first ÷ steady", starts, _ratio, BOUND) for form, starts in forms.items()),
            *(
                _figure(f"resnet50, {form}: the process's very first ÷ steady", starts, _very_first)
                for form, starts in forms.items()
            ),
            *(
                _figure(f"resnet50, {form}: first ÷ steady, each of four workers", starts, _ratio, BOUND)
                for form, starts in forms_four.items()
            ),
        ],
        "the same server with warmup and proof switched off",
        {
            "one": one,
            "four": four,
            "dense 64": tiny,
            "embed": text,
            "embed, four": text_four,
            **forms,
            **{f"{form}, four": starts for form, starts in forms_four.items()},
        },
    )


def _texts(batches: Sequence[int], lengths: Sequence[int]) -> dict[str, bytes]:
    # Three quarters of a bucket is in no shorter one.
    return {f"{rows}x{length}": infer("embed", repository.texts(rows, length * 3 // 4)) for length in lengths for rows in batches}


def _form(folder: Path, form: torch_repository.Form) -> Case:
    images = {str(size): infer("resnet50_torch", repository.image(size)) for size in repository.SIZES}
    return Case(f"resnet50, {form}", torch_repository.resnet50(folder, form), images, controls=1)


def _figure(name: str, found: Both, read: Callable[[Starts], float], bound: float | None = None) -> Figure:
    warm, cold = map(read, found)
    return Figure(name, warm, "", bound, cold)


def _of(found: Both, length: int) -> Both:
    warm, cold = ([[each for each in start if each.shape.endswith(f"x{length}")] for start in starts] for starts in found)
    return warm, cold


def _ratio(starts: Starts) -> float:
    return median(each.ratio for start in starts for each in start)


def _very_first(starts: Starts) -> float:
    return median(start[0].ratio for start in starts)


def _worst(starts: Starts) -> float:
    return max(each.ratio for start in starts for each in start)


def _rested(starts: Starts) -> float:
    return median(each.rested_ms / each.steady_ms for start in starts for each in start)
