"""Compressed contexts as rows of one batch, to which a model adds tokens that a test chooses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcache.attention import attending
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.modules import cache_keyword
from longpress.pipeline.compressed_context import CompressedContext


def decode_forced(
    model: PreTrainedModel,
    contexts: Sequence[CompressedContext],
    decode_hooks: Sequence[Callable[[], DecodeHook | None]],
    ids: Tensor,
) -> Tensor:
    """(R, n, D) hidden states of single tokens (R, n) fed one after the other to a batch of rows.

    Args:
        model: The model that read the contexts.
        contexts: One a row.
        decode_hooks: What makes each row's decode hook of a layer, or None.
        ids: The tokens, whatever the model would have said.
    """
    starts = [context.next_position for context in contexts]
    count = len(contexts[0].layers)
    made = [
        [
            decode_hook() if at in context.observed else None
            for context, decode_hook in zip(contexts, decode_hooks, strict=True)
        ]
        for at in range(count)
    ]
    cache = CompressedCache(
        [CompressedLayer([c.layers[at] for c in contexts], starts, 0, made[at]) for at in range(count)]
    )
    out = []
    with torch.no_grad(), attending(model):
        for step in range(ids.shape[1]):
            positions = (torch.tensor(starts) + step)[:, None]
            out.append(
                model.model(
                    input_ids=ids[:, step : step + 1],
                    position_ids=positions,
                    **{cache_keyword(model.model): cache},
                ).last_hidden_state
            )
    return torch.cat(out, dim=1)
