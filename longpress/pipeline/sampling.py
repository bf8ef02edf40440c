"""The choice of the next token: the most likely one, or one that is drawn.

Every row draws with a generator of its own, one number a token, so its answer does not depend on the rows
beside it, on their order, or on when it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from longpress.pipeline.options import SamplingOptions


def probabilities(logits: Tensor, options: SamplingOptions) -> Tensor:
    """(R, V) float64: with which probability each token is drawn.

    The temperature comes first, then `top_k`, `top_p` and `min_p`, each on what those before it leave, as in
    transformers.

    Args:
        logits: (R, V), -inf for tokens that must not be drawn.
        options: with a temperature above 0.
    """
    # the largest logit is 0, so that no temperature is too small
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / options.temperature

    if options.top_k:
        least = scaled.topk(min(options.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    if options.top_p < 1:
        ascending, order = scaled.sort(dim=-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - options.top_p
        dropped[:, -1] = False
        scaled = scaled.masked_fill(dropped.scatter(-1, order, dropped), float("-inf"))
    if options.min_p:
        likely = scaled.softmax(-1)
        scaled = scaled.masked_fill(likely < options.min_p * likely.amax(-1, keepdim=True), float("-inf"))
    return scaled.softmax(-1)


def drawn(logits: Tensor, options: SamplingOptions, generators: Sequence[Random]) -> Tensor:
    """(R,) tokens drawn from `probabilities`, each with one number of its row's generator.

    Args:
        logits: (R, V), finite or -inf.
        options: with a temperature above 0.
        generators: one per row.
    """
    summed = probabilities(logits, options).cumsum(-1)
    total = summed[:, -1:].contiguous()
    numbers = torch.tensor(
        [[generator.random()] for generator in generators], dtype=summed.dtype, device=summed.device
    )
    tokens = torch.searchsorted(summed, numbers * total, right=True)
    last = torch.searchsorted(
        summed, total
    )  # the last token with a probability, where a product was rounded up
    return torch.minimum(tokens, last)[:, 0]
