"""LU-KV: budgets per head that were learned offline, on the scores of another press.

A curve gives, for each percent of compression, the share that each head of each layer loses; a layer's total
is the sum over its heads, rounded, and at least one entry stays in each. A head's curve is made so that what
the press inside keeps of it is of use later: the use of an entry j is max_k ‖a_kj v_j W_O‖₂ over later
queries k, and entries go where the concave hull of the summed use rises most.
Source: Baidu 2026, arXiv 2602.08585; curve of the authors for Llama-3.1-8B-Instruct with expected attention;
kvpress 0.5.5 for sinks.
Differs: head-wise budgets are real. Curves of other models are made by `calibrate`, where the later queries
are those of the last quarter of each text (authors: of tokens that the model writes).
Cost: that of the press inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.expected_attention import ExpectedAttentionPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.support.chunks import part
from presses.support.norms import output_norms
from presses.support.weights import checked, last_part, model_name, observe_pieces, read
from presses.wrapper import ScoreWrapperPress

PUBLISHED = {
    "Llama-3.1-8B-Instruct": (
        "https://raw.githubusercontent.com/baidu-baige/LU-KV/main/evaluation/curve_data/llama-3.1-8b"
    ),
}
"""Model -> folder of the authors' curve."""

FILE = "ea_0.02_sink4_win1_llama_avg_ratio.npy"
"""Name of the file with a curve, that of the authors."""


@dataclass(frozen=True)
class LUKVPress(ScoreWrapperPress):
    """Learned head-wise budgets.

    Attributes:
        press: whose scores are ranked; the published curve was made with this one.
        compression_ratio: fraction removed, in [0, 1), to a percent; the curve decides how it is met.
        sink: first tokens, always kept.
        window: last tokens, always kept.
        weights: local .npy file (99, layers, heads) of pruned shares, or a folder with it; None for what is
            published for the model.
    """

    press: ScorerPress = ExpectedAttentionPress(epsilon=0.02)
    compression_ratio: float | None = None  # type: ignore[assignment]
    sink: int = 4
    window: int = 1
    weights: str | None = None

    def __post_init__(self) -> None:
        """Refuse negative windows."""
        super().__post_init__()
        check_least(0, "token", sink=self.sink, window=self.window)

    @property
    def traits(self) -> Traits:
        """There is a recipe to learn what the press needs to know of a model."""
        return replace(super().traits, has_recipe=True)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the layer's part (99, H) of the curve.

        Raises:
            ValueError: nothing is published for the model, or the curve is another model's.
        """
        name = model_name(layer.module)
        description = f"LU-KV budget curves of {name or 'a model without a name'}"
        config: Any = layer.module.config
        source = self.weights or PUBLISHED.get(last_part(name).replace("Meta-", ""))
        curve = read(source, FILE, "main", description)
        curve = checked(curve, (99, config.num_hidden_layers, layer.kv_heads), description)
        return self.press.observe(layer), curve[:, layer.index]

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """Of every head as many of its best entries as the curve says."""
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        return [
            self._select(scores, curve, budget) for scores, (_, curve) in zip(ranked, evidence, strict=True)
        ]

    def _select(self, scores: Tensor, curve: Tensor, budget: Budget) -> Selection:
        tokens = scores.shape[-1]
        percent = round(100 * budget.removed_share(tokens))
        kept_shares = 1 - curve[min(max(percent - 1, 0), 98)].double()  # the curve begins at 1 percent
        counts = head_budgets(kept_shares, tokens).to(scores.device)
        return Selection.top(self._pinned(scores), counts.expand(scores.shape[:2]))

    def _pinned(self, scores: Tensor) -> Tensor:
        """(B, H, T) float32, the ends on top: equal among themselves, the first token goes last."""
        at = torch.arange(scores.shape[-1], device=scores.device)
        pinned = (at < self.sink) | (at >= scores.shape[-1] - self.window)
        return scores.float().masked_fill(pinned, torch.finfo(torch.float32).max)

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write the curve in the authors' format: shares pruned at each percent, averaged over the pieces.

        Its shape is (99, L, H).
        """
        gains: dict[int, list[Tensor]] = {}  # per layer, of each piece (H, C)

        def collect(layer: LayerObservation) -> None:
            # The first three quarters of the piece, ranked by the press inside; the rest reads them.
            context = part(layer, 0, layer.tokens - max(1, layer.tokens // 4))
            scores = self.press.scores_at([self.press.observe(context)], Budget.fixed())[0]
            order = self._pinned(scores).sort(dim=-1, descending=True, stable=True).indices[0]
            use = later_use(layer, context.tokens).gather(-1, order).double().cpu()
            gains.setdefault(layer.index, []).append(torch.stack([concave(head) for head in use]))

        observe_pieces(model, pieces, collect)
        config: Any = model.config
        layers = config.get_text_config().num_hidden_layers
        per_piece = zip(*gains.values(), strict=True)
        curves = [
            pruned_shares(torch.stack(of_layers)) for of_layers in per_piece
        ]  # (99, observed layers, H)

        # Layers that are left whole lose nothing.
        curve = torch.zeros(99, layers, curves[0].shape[-1], dtype=torch.float64)
        curve[:, list(gains)] = torch.stack(curves).mean(0)
        numpy.save(folder / FILE, curve.float().numpy())

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """At least one entry per head; the curve decides."""
        return layers * heads, layers * heads * tokens


def head_budgets(shares: Tensor, tokens: int) -> Tensor:
    """(H,) whole numbers in [1, tokens] near shares (H,) of the tokens.

    They are rounded down; what is missing goes to the largest fractions.
    """
    ideal = shares * tokens
    total = min(max(round(float(ideal.sum())), len(shares)), len(shares) * tokens)
    counts = ideal.floor().long()
    fractions = (ideal - counts).sort(descending=True, stable=True).indices
    counts[fractions[: max(0, total - int(counts.sum()))]] += 1
    return counts.clamp(1, tokens)


def later_use(layer: LayerObservation, tokens: int) -> Tensor:
    """(H, C) float32: how much each of the first C = `tokens` entries is of use later.

    That is the most that it adds to an output at any later position, through any query head of its group.
    """
    attention = layer.window_attention(layer.tokens - tokens)[0, :, :, :tokens].float().amax(1)  # (H * G, C)
    norms = output_norms(layer, layer.values[:, :, :tokens])[0]  # (H, G, C)
    return (attention.unflatten(0, norms.shape[:2]) * norms).amax(1)


def concave(gains: Tensor) -> Tensor:
    """(C,) non-increasing: what each entry adds on the concave hull of the running sum of `gains` (C,)."""
    # Neighbouring entries that add the same: their sum and number. One that adds no less than those before it
    # is joined with them.
    pools: list[tuple[float, int]] = []
    for gain in gains.tolist():
        total, many = gain, 1
        while pools and pools[-1][0] * many <= total * pools[-1][1]:
            sum_before, many_before = pools.pop()
            total, many = total + sum_before, many + many_before
        pools.append((total, many))
    sums, sizes = (torch.tensor(side, dtype=torch.float64) for side in zip(*pools, strict=True))
    return (sums / sizes).repeat_interleave(sizes.long())


def pruned_shares(gains: Tensor) -> Tensor:
    """(99, L, H): share that each head loses at 1 … 99 percent, where the largest gains (L, H, C) stay."""
    layers, heads, entries = gains.shape
    order = gains.flatten().sort(descending=True, stable=True).indices
    head_of = order // entries
    kept = []
    for percent in range(1, 100):
        staying = round(len(order) * (100 - percent) / 100)
        kept.append(head_of[:staying].bincount(minlength=layers * heads))
    return 1 - torch.stack(kept).double().view(99, layers, heads) / entries
