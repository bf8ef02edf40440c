"""A model's logits of hidden states, with all that the model does to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's logits of hidden states, scaled and capped as the model does it.

    Which token is most likely does not depend on that; probabilities do.
    """
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    cap = getattr(config, "final_logit_softcapping", None) or math.inf
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def logits(hidden: Tensor) -> Tensor:
        found: Tensor = head(hidden)
        found = found if factor == 1 else found * factor
        return found if math.isinf(cap) else torch.tanh(found / cap) * cap

    return logits
