"""Places in a text: where answers stand, and where they stand after its middle was cut out."""

from __future__ import annotations

from collections.abc import Sequence

Spans = tuple[tuple[int, int], ...]
"""Pieces of a text as characters [start, end), in order."""


def find_spans(text: str, wanted: Sequence[str]) -> Spans:
    """Where each of `wanted` first stands in a text, in order; what does not stand there is left out."""
    places = {(start, start + len(part)) for part in wanted if part and (start := text.find(part)) >= 0}
    return tuple(sorted(places))


def moved_spans(before: str, after: str, spans: Spans) -> Spans:
    """What is left of spans of a text after its middle was cut out.

    Args:
        before: the text.
        after: the same without its middle.
        spans: of `before`.

    Returns:
        One or two pieces of each span, where they stand in `after`.
    """
    head = _shared_length(before, after)
    rest = min(len(before), len(after)) - head
    end = _shared_length(before[len(before) - rest :][::-1], after[len(after) - rest :][::-1])
    shift, start_of_end = len(after) - len(before), len(before) - end
    pieces = []
    for start, stop in spans:
        pieces += [(start, min(stop, head)), (max(start, start_of_end) + shift, stop + shift)]
    return tuple(sorted((start, stop) for start, stop in pieces if start < stop))


def _shared_length(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))
