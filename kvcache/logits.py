"""What attentions do to their logits besides scaling them.

Gemma 2 caps them; GPT-OSS leaves a share of the softmax to a sink that has no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cap_of(module: Any) -> float | None:
    """Bound c of an attention that takes c · tanh(logit / c), else None."""
    return getattr(module, "attn_logit_softcapping", None)


def sinks_of(module: Any) -> Tensor | None:
    """(H * G,) logits of the sinks of an attention module, else None."""
    return getattr(module, "sinks", None)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """C · tanh(logit / c); as they are without a cap. To be applied before anything is hidden."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Float32 softmax over the last dimension of (B, H, G, n, K).

    Sinks (H * G,) take their share of it, so that the weights sum to less than 1.
    """
    if sinks is None:
        return logits.softmax(-1, dtype=torch.float32)
    column = sinks.to(logits.dtype).view(1, *logits.shape[1:3], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.cat((logits, column), dim=-1).softmax(-1, dtype=torch.float32)[..., :-1]


def minus_infinity(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where `hidden`, 0 elsewhere: what is added to logits of keys that a query must not see."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
