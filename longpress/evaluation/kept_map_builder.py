"""The kept map of a context that was read: what each variant kept of every token, as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.base import Sample
from longpress.analysis.kept_maps import KeptMap
from longpress.pipeline.compressed_context import CompressedContext


def kept_map(
    text: str,
    spans: Sequence[tuple[int, int]],
    samples: Sequence[Sample],
    kept: Mapping[str, CompressedContext],
) -> KeptMap:
    """The map of one context.

    Args:
        text: the context as it was read.
        spans: (T,) characters [start, end) of its tokens; negative at the chat template's.
        samples: those that ask about it.
        kept: per record key, what its variant kept; all of the same model and context.
    """
    any_kept = next(iter(kept.values()))
    heads = any_kept.entries()
    entries = sum(len(heads[index]) for index in any_kept.observed)

    # a variant that left everything in place counts no heads: all of them keep every token
    everywhere = np.full(len(spans), entries, dtype=np.int32)
    counts = {
        key: everywhere if context.kept_by is None else context.kept_by.numpy()
        for key, context in kept.items()
    }
    return KeptMap(
        text,
        np.array(spans, dtype=np.int32).clip(0).reshape(-1, 2),
        entries,
        evidence={sample.id: [list(span) for span in sample.evidence] for sample in samples},
        questions={sample.id: sample.question for sample in samples},
        counts=counts,
    )
