"""The plots of `python -m bench`: where the seconds go, and how they grow. Needs matplotlib (extra `plots`) to draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTS = ("prefill", "compress", "decode")
"""Of a sweep's seconds; observing is part of the prefill."""

_GREYS = {"prefill": "0.35", "compress": "0.1", "decode": "0.65"}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Write `seconds` and, where growth was measured, `growth` to `folder`, as .png and .pdf.

    Args:
        found: what `python -m bench` writes to speed.json.
        folder: to write to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(found["lengths"]), figsize=(4.2 * len(found["lengths"]), 3.4), squeeze=False
    )
    for axes, (length, one) in zip(panels[0], found["lengths"].items(), strict=True):
        _bars(axes, one)
        axes.set_title(
            f"{length} tokens, {one['variants']} variants, {len(one['ours']['answers'])} rows", fontsize=10
        )
        axes.set_ylabel("seconds")
    _save(figure, folder / "seconds")
    if "growth" in found:
        figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.4))
        for axes, (what, label) in zip(
            panels, (("variants", "variants"), ("contexts", "context tokens, 33 variants")), strict=True
        ):
            points = sorted(
                (int(name), one["seconds"], one["prefill"]) for name, one in found["growth"][what].items()
            )
            at, seconds, prefill = zip(*points, strict=True)
            axes.plot(at, seconds, "ko-", label="sweep")
            axes.plot(at, prefill, "s--", color="0.5", label="of which prefill")
            axes.set(xlabel=label, ylabel="seconds for one row", ylim=0, xlim=0)
            axes.legend(frameon=False)
        _save(figure, folder / "growth")


def _bars(axes: Any, one: Mapping[str, Any]) -> None:
    """Limit, longpress and, where measured, kvpress beside each other."""
    bottom = 0.0
    for part in PARTS:
        seconds = one["ours"][part]
        axes.bar(1, seconds, bottom=bottom, color=_GREYS[part], label=part)
        bottom += seconds
    axes.bar(0, one["limit"]["seconds"], color="white", edgecolor="black", hatch="//")
    names, tops = ["limit", "longpress"], [one["limit"]["seconds"], one["ours"]["seconds"]]
    if "peer" in one:
        names.append("kvpress")
        tops.append(one["peer"]["extrapolated_seconds"])
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
