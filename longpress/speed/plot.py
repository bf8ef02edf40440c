"""The plots of `longpress bench`: where the seconds go, and how they grow.

Drawing needs matplotlib (extra `plots`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTS = ("prefill", "compress", "decode")
"""Of a sweep's seconds; observing is part of the prefill."""

_GREYS = {"prefill": "0.35", "compress": "0.1", "decode": "0.65"}


def draw(measured: Mapping[str, Any], folder: Path) -> None:
    """Write `seconds` and, where growth was measured, `growth` to `folder`, as .png and .pdf.

    Args:
        measured: what `longpress bench` writes to speed.json.
        folder: to write to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(measured["lengths"])
    figure, panels = pyplot.subplots(1, count, figsize=(4.2 * count, 3.4), squeeze=False)
    for axes, (length, comparison) in zip(panels[0], measured["lengths"].items(), strict=True):
        _bars(axes, comparison)
        rows = len(comparison["ours"]["answers"])
        axes.set_title(f"{length} tokens, {comparison['variants']} variants, {rows} rows", fontsize=10)
        axes.set_ylabel("seconds")
    _save(figure, folder / "seconds")

    if "growth" in measured:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 3.4))
        _curves(left, measured["growth"]["variants"], "variants")
        _curves(right, measured["growth"]["contexts"], "context tokens, 33 variants")
        _save(figure, folder / "growth")


def _curves(axes: Any, sweeps: Mapping[str, Any], label: str) -> None:
    """Seconds of one row against what grows, the prefill beside them."""
    points = sorted((int(size), sweep["seconds"], sweep["prefill"]) for size, sweep in sweeps.items())
    sizes, seconds, prefill = zip(*points, strict=True)
    axes.plot(sizes, seconds, "ko-", label="sweep")
    axes.plot(sizes, prefill, "s--", color="0.5", label="of which prefill")
    axes.set(xlabel=label, ylabel="seconds for one row", ylim=0, xlim=0)
    axes.legend(frameon=False)


def _bars(axes: Any, comparison: Mapping[str, Any]) -> None:
    """Limit, longpress and, where measured, kvpress beside each other."""
    bottom = 0.0
    for part in PARTS:
        seconds = comparison["ours"][part]
        axes.bar(1, seconds, bottom=bottom, color=_GREYS[part], label=part)
        bottom += seconds
    axes.bar(0, comparison["limit"]["seconds"], color="white", edgecolor="black", hatch="//")
    names, tops = ["limit", "longpress"], [comparison["limit"]["seconds"], comparison["ours"]["seconds"]]
    if "peer" in comparison:
        names.append("kvpress")
        tops.append(comparison["peer"]["extrapolated_seconds"])
        axes.bar(2, tops[-1], color="white", edgecolor="black")
    for at, top in enumerate(tops):
        axes.annotate(
            f"{top:.0f}", (at, top), ha="center", va="bottom", xytext=(0, 2), textcoords="offset points"
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, max(tops) * 1.15)
    axes.legend(frameon=False, loc="upper left")


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    for ending in (".png", ".pdf"):
        figure.savefig(path.with_suffix(ending), dpi=150)
