"""p50, p95 and p99 over time, with windows and events marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workloads.windows import Answer, Window, percentile_ms

SHARES = (0.5, 0.95, 0.99)
_BINS = 10
"""Per window."""


def plot(
    answers: Sequence[Answer], windows: Sequence[Window], marks: Sequence[tuple[float, str]], title: str, path: Path
) -> None:
    """Write a picture to `path`; time counts from the first window."""
    import matplotlib as mpl  # noqa: PLC0415 - after the run: it takes a second of a core

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after its backend

    first, last = windows[0].begin, windows[-1].end
    step = (windows[0].end - first) / _BINS
    bins = [Window(first + turn * step, first + (turn + 1) * step, "") for turn in range(int((last - first) / step) + 1)]
    figure, axes = plt.subplots(figsize=(14, 5), layout="constrained")
    for share in SHARES:
        found = [percentile_ms(each.of(answers), share) for each in bins]
        axes.step([each.begin - first for each in bins], found, where="post", label=f"p{share * 100:g}")
    failed = [answer for answer in answers if answer.error]
    axes.plot([each.due - first for each in failed], [each.latency * 1e3 for each in failed], "rx", label="failed")
    for window in windows:
        if window.event:
            axes.axvspan(window.begin - first, window.end - first, alpha=0.1, color="tab:orange")
    for moment, what in marks:
        axes.axvline(moment - first, color="grey", linestyle="--" if what else ":", linewidth=0.8)
        axes.annotate(what, (moment - first, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize="small")
    axes.set(title=title, xlabel="s", ylabel="ms from the intended start", yscale="log")
    axes.legend(loc="upper right")
    path.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
