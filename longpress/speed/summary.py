"""What was measured, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from longpress.speed.plot import PARTS


def summary(measured: Mapping[str, Any]) -> str:
    """What a person wants to know of what `longpress bench` writes to speed.json."""
    lines = [
        line for length, comparison in measured["lengths"].items() for line in _comparison(length, comparison)
    ]
    for count, sweep in measured.get("growth", {}).get("variants", {}).items():
        lines.append(
            f"{count} variants, one row: {sweep['seconds']:.1f} s, of them prefill {sweep['prefill']:.1f}"
        )
    for tokens, sweep in measured.get("growth", {}).get("contexts", {}).items():
        peak = sweep["peak_bytes"] / 1e9
        lines.append(
            f"{tokens} tokens, 33 variants, one row: {sweep['seconds']:.1f} s, peak memory {peak:.2f} GB"
        )
    return "\n".join(lines)


def _comparison(length: str, comparison: Mapping[str, Any]) -> Iterator[str]:
    """One length: seconds and their parts, the limit, the cost of a press, kvpress."""
    ours, limit = comparison["ours"], comparison["limit"]
    parts = ", ".join(f"{name} {ours[name]:.1f}" for name in PARTS)
    yield (
        f"{length} tokens, {comparison['variants']} variants, {len(ours['answers'])} rows: "
        f"{ours['seconds']:.1f} s ({parts})"
    )
    yield (
        f"  peak memory {ours['peak_bytes'] / 1e9:.2f} GB; "
        f"{comparison['fraction_of_limit']:.2f} of the limit with PyTorch's products "
        f"({limit['seconds']:.1f} s), {comparison['fraction_of_fast_limit']:.2f} with those chosen here "
        f"({limit['fast_seconds']:.1f} s)"
    )
    yield (
        f"  scoring costs a press {comparison['observe_share_per_press']:.1%} of a prefill on average; "
        f"selecting, a variant and row {comparison['compress_per_variant']:.3f} s"
    )
    if "peer" not in comparison:
        return
    yield (
        f"  kvpress {comparison['peer']['extrapolated_seconds']:.0f} s, "
        f"extrapolated from {len(comparison['peer_points'])} variants: "
        f"{comparison['ratio_to_peer']:.1f} times as long; answers differ in "
        f"{len(comparison['different_answers'])} of {comparison['compared_answers']}"
    )
    for answer in comparison["different_answers"]:
        variant = f"{answer['press']}@{answer['ratio']}"
        yield f"    {answer['task']} {variant}: {answer['ours']!r} | {answer['peer']!r}"
