"""LU-KV: budgets per head that were learned offline, on the scores of another press.

A curve gives, for each percent of compression, the share that each head of each layer loses; a layer's total is the sum over its heads,
rounded, and at least one entry stays in each.
Source: Baidu 2026, arXiv 2602.08585; curve of the authors for Llama-3.1-8B-Instruct with expected attention; kvpress 0.5.5 for sinks.
Differs: head-wise budgets are real.
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.weights import checked, last_part, model_name, read
from presses.expected_attention import ExpectedAttentionPress
from presses.scorer import ScorerPress
from presses.wrapper import ScoreWrapperPress

PUBLISHED = {
    "Llama-3.1-8B-Instruct": "https://raw.githubusercontent.com/baidu-baige/LU-KV/main/evaluation/curve_data/llama-3.1-8b",
}
"""Model -> folder of the authors' curve."""

FILE = "ea_0.02_sink4_win1_llama_avg_ratio.npy"


@dataclass(frozen=True)
class LUKVPress(ScoreWrapperPress):
    """Learned head-wise budgets.

    Attributes:
        press: whose scores are ranked; the published curve was made with this one.
        compression_ratio: fraction removed, in [0, 1), to a percent; the curve decides how it is met.
        sink: first tokens, always kept.
        window: last tokens, always kept.
        weights: local .npy file (99, layers, heads) of pruned shares, or a folder with it; None for what is published for the model.
    """

    press: ScorerPress = ExpectedAttentionPress(epsilon=0.02)
    compression_ratio: float | None = None  # type: ignore[assignment]
    sink: int = 4
    window: int = 1
    weights: str | None = None

    def __post_init__(self) -> None:
        """Refuse negative windows."""
        super().__post_init__()
        if self.sink < 0 or self.window < 0:
            raise ValueError(f"sink={self.sink} and window={self.window} must be at least 0 tokens")

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the layer's part (99, H) of the curve.

        Raises:
            ValueError: nothing is published for the model, or the curve is another model's.
        """
        name = model_name(layer.module)
        wanted = f"LU-KV budget curves of {name or 'a model without a name'}"
        config: Any = layer.module.config
        curve = read(self.weights or PUBLISHED.get(last_part(name).replace("Meta-", "")), FILE, "main", wanted)
        curve = checked(curve, (99, config.num_hidden_layers, layer.kv_heads), wanted)
        return self.press.observe(layer), curve[:, layer.index]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], ratio: float) -> list[Selection]:
        """Of every head as many of its best entries as the curve says."""
        scores = self.press.scores_at([seen for seen, _ in evidence], ratio)
        return [self._select(ranked, curve, ratio) for ranked, (_, curve) in zip(scores, evidence, strict=True)]

    def _select(self, scores: Tensor, curve: Tensor, ratio: float) -> Selection:
        tokens = scores.shape[-1]
        counts = head_budgets(1 - curve[min(max(round(100 * ratio) - 1, 0), 98)].double(), tokens).to(scores.device)
        at = torch.arange(tokens, device=scores.device)
        pinned = (at < self.sink) | (at >= tokens - self.window)  # equal among themselves: the first token goes last
        return Selection.top(scores.float().masked_fill(pinned, torch.finfo(torch.float32).max), counts.expand(scores.shape[:2]))

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """At least one entry per head; the curve decides."""
        return layers * heads, layers * heads * tokens


def head_budgets(shares: Tensor, tokens: int) -> Tensor:
    """(H,) whole numbers in [1, tokens] near shares (H,) of the tokens: rounded down, the rest to the largest fractions."""
    ideal = shares * tokens
    total = min(max(round(float(ideal.sum())), len(shares)), len(shares) * tokens)
    counts = ideal.floor().long()
    fractions = (ideal - counts).sort(descending=True, stable=True).indices
    counts[fractions[: max(0, total - int(counts.sum()))]] += 1
    return counts.clamp(1, tokens)
