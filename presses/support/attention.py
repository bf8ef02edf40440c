"""Attention that the entries of a cached context get while the model reads more on top of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kvcache.observation import LayerObservation


class AttentionBlock(NamedTuple):
    """Attention of some of the tokens that a layer has just read.

    Attributes:
        queries: which of them, as positions start:stop among those just read.
        weights: (B, H, G, m, C) float32 what each pays to the entries of the context.
    """

    queries: slice
    weights: Tensor


def attention_to_context(layer: LayerObservation, keys: Tensor, block: int) -> Iterator[AttentionBlock]:
    """What the tokens just replayed pay to entries of the context, block by block of these tokens.

    Args:
        layer: observed in a replay: queries of the tokens just read, keys of all replayed so far.
        keys: (B, H, C, d) of the context's entries that take part in the softmax.
        block: tokens whose attention is held at once.
    """
    queries = layer.queries(layer.hidden.shape[1]).unflatten(1, (-1, layer.group))  # (B, H, G, n, d)
    n, replayed, context = queries.shape[3], layer.tokens, keys.shape[2]
    everything = torch.cat((keys, layer.keys), dim=2)  # (B, H, C + replayed, d)
    at = torch.arange(replayed, device=keys.device)
    for start in range(0, n, block):
        stop = min(n, start + block)
        logits = layer.logits(queries[:, :, :, start:stop], everything)
        later = at > at[replayed - n + start : replayed - n + stop, None]
        logits[..., context:].masked_fill_(later, float("-inf"))
        yield AttentionBlock(slice(start, stop), layer.softmax(logits)[..., :context])
