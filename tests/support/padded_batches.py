"""Contexts of different lengths as a padded batch, and each by itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvcache.modules import cache_keyword
from presses.base import BasePress
from tests.support.tiny_models import PAD, tiny_ids

LENGTHS = (90, 57, 73)
"""Tokens of the contexts: the longest one has no padding."""


def contexts(lengths: Sequence[int] = LENGTHS, most: int | None = None) -> list[Tensor]:
    """Ids (1, t) of each context, below `most` where a model knows fewer."""
    rows = [tiny_ids(length, seed=10 + row) for row, length in enumerate(lengths)]
    return rows if most is None else [row % (most - 4) + 4 for row in rows]


def padded(rows: Sequence[Tensor], side: str = "left", more: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of contexts (1, t), with `more` columns than the longest needs."""
    columns = max(row.shape[1] for row in rows) + more
    ids = torch.full((len(rows), columns), PAD)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        first = columns - row.shape[1] if side == "left" else 0
        ids[at, first : first + row.shape[1]] = row[0]
        mask[at, first : first + row.shape[1]] = 1
    return ids, mask


def forced_logits(
    model: PreTrainedModel, press: BasePress, ids: Tensor, mask: Tensor | None, forced: Tensor
) -> Tensor:
    """(B, 1 + n, V): logits after a prefill, and after each of the forced tokens (B, n) behind it.

    Every pass gets the mask and the positions that `generate` would give it.
    """
    config: Any = model.config
    stored = DynamicCache(config=config.get_text_config())
    keyword = cache_keyword(model)
    with torch.no_grad(), press(model):
        logits = [model(ids, attention_mask=mask, **{keyword: stored}).logits[:, -1:]]
        for token in forced.split(1, dim=1):
            given: dict[str, Any] = {keyword: stored}
            if mask is not None:
                mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
                given |= {"attention_mask": mask, "position_ids": mask.cumsum(-1)[:, -1:] - 1}
            logits.append(model(token, **given).logits)
    return torch.cat(logits, dim=1)


def logits_one_by_one(
    model: PreTrainedModel, press: BasePress, rows: Sequence[Tensor], forced: Tensor
) -> Tensor:
    """As `forced_logits`, of contexts that are each read and continued by themselves."""
    alone = [forced_logits(model, press, row, None, forced[at : at + 1]) for at, row in enumerate(rows)]
    return torch.cat(alone)
