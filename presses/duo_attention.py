"""DuoAttention: heads that do not retrieve keep only the first and the most recent tokens.

Every head has a score of how much it retrieves; the lowest of all keep `sink_size` first and `recent_size`
last tokens, the others everything. As many are short as the ratio of entries needs, the last of them with
more recent tokens, so that the budget is met exactly; where short heads alone are too many entries, all keep
fewer.
Source: Xiao et al. 2024, arXiv 2410.10819, and the patterns in the authors' repository; kvpress 0.5.5 for
scores without training.
Differs: the ratio is of entries; that of paper and kvpress, of short heads (the round(layers · heads · ratio)
lowest), is `head_compression_ratio`. The budget of short heads is real, so the measured fraction is then
(1 - ratio) + ratio · (sink + recent)/T, never above 1. Without training, the head scores come from the
context itself, or from texts by `calibrate`.
Cost: nothing with patterns; else queries and keys of all tokens once more, per layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvcache.budget import Budget, check_ratio
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress
from presses.support.budgets import ends, shorten
from presses.support.checks import check_least
from presses.support.scores import mean_over_group
from presses.support.weights import checked, last_part, model_name, observe_pieces, read

ADDRESS = "https://raw.githubusercontent.com/mit-han-lab/duo-attention/{revision}/attn_patterns/{pattern}"
_SHORT, _LONG = (f"lr%3D0.02-reg%3D0.05-ctx%3D1000_{length}-multi_passkey10" for length in (32000, 128000))
PATTERNS = {
    "Llama-2-7B-32K-Instruct": f"Llama-2-7B-32K-Instruct/{_SHORT}",
    "Llama-3-8B-Instruct-Gradient-1048k": f"Llama-3-8B-Instruct-Gradient-1048k/{_SHORT}",
    "Llama-3-8B-Instruct-Gradient-4194k": f"Llama-3-8B-Instruct-Gradient-4194k/{_SHORT}",
    "Llama-3.1-8B-Instruct": f"Meta-Llama-3.1-8B-Instruct/{_LONG}",
    "Mistral-7B-Instruct-v0.2": f"Mistral-7B-Instruct-v0.2/{_SHORT}",
    "Mistral-7B-Instruct-v0.3": f"Mistral-7B-Instruct-v0.3/{_SHORT}",
}
"""Model -> folder of the authors' pattern, below `ADDRESS`."""

SINK_SIZE, RECENT_SIZE = 128, 256
"""First and last tokens that a short head keeps, where heads are scored without training."""

POSITIONS = 500
"""Tokens between which a head's typical query and key are compared, without training."""


class Pattern(NamedTuple):
    """What tells a layer's heads apart.

    Attributes:
        scores: (B or 1, H).
        sink_size: first tokens that a short head keeps.
        recent_size: last tokens that a short head keeps.
    """

    scores: Tensor
    sink_size: int
    recent_size: int


class HeadScores(NamedTuple):
    """What is remembered of a layer's heads.

    Attributes:
        scores: (B, H, T), the same for all entries of a head.
        sink_size: first tokens that a short head keeps.
        recent_size: last tokens that a short head keeps.
    """

    scores: Tensor
    sink_size: int
    recent_size: int


@dataclass(frozen=True)
class DuoAttentionPress(BasePress):
    """Retrieval heads and streaming heads.

    Attributes:
        compression_ratio: fraction of entries removed, in [0, 1), where `head_compression_ratio` is not
            given.
        head_compression_ratio: fraction of heads that are short; it is the budget, whatever ratio a sweep
            asks.
        on_the_fly_scoring: whether the context itself tells the heads apart, instead of a trained pattern.
        sink_size: first tokens that short heads keep; None for the pattern's.
        recent_size: last tokens that short heads keep; None for the pattern's.
        weights: local folder with config.json and full_attention_heads.tsv; None for the authors' pattern of
            the model.
        revision: of the authors' repository.
    """

    compression_ratio: float = 0.0
    head_compression_ratio: float | None = None
    on_the_fly_scoring: bool = False
    sink_size: int | None = None
    recent_size: int | None = None
    weights: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse ratios outside [0, 1) and negative windows."""
        super().__post_init__()
        if self.head_compression_ratio is not None:
            fixed = check_ratio(self.head_compression_ratio)
            object.__setattr__(self, "head_compression_ratio", fixed)
        check_least(0, "token", sink_size=self.sink_size, recent_size=self.recent_size)

    @property
    def traits(self) -> Traits:
        """A given share of short heads is the budget."""
        return Traits(has_fixed_budget=self.head_compression_ratio is not None, has_recipe=True)

    def observe(self, layer: LayerObservation) -> HeadScores:
        """The scores of the layer's heads, and the size of short ones.

        Raises:
            ValueError: there is no pattern for the model, or it is another model's.
        """
        if self.on_the_fly_scoring:
            pattern = Pattern(head_scores(layer), SINK_SIZE, RECENT_SIZE)
        else:
            pattern = self._pattern(layer)
        sink_size = pattern.sink_size if self.sink_size is None else self.sink_size
        recent_size = pattern.recent_size if self.recent_size is None else self.recent_size
        scores = pattern.scores.to(layer.keys.device)[..., None].expand(layer.keys.shape[:3])
        return HeadScores(scores, sink_size, recent_size)

    def _pattern(self, layer: LayerObservation) -> Pattern:
        """The layer's heads as trained, from the files of the model's pattern."""
        # Where the pattern lies.
        name = model_name(layer.module)
        description = f"DuoAttention pattern of {name or 'a model without a name'}"
        folder = PATTERNS.get(last_part(name).replace("Meta-", ""))
        source = self.weights or (folder and ADDRESS.format(revision=self.revision, pattern=folder))
        sizes_file = str(read(source, "config.json", self.revision, description))
        scores_file = str(read(source, "full_attention_heads.tsv", self.revision, description))

        # What it says: two sizes, and a table of scores with a line per layer and a column per KV head.
        try:
            sizes = json.loads(sizes_file)
            sink_size, recent_size = int(sizes["sink_size"]), int(sizes["recent_size"])
            lines = [line.split("\t") for line in scores_file.splitlines() if line.strip()]
            table = torch.tensor([[float(score) for score in line] for line in lines])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"no {description}: the files at {source} are of another kind ({type(error).__name__}: "
                f"{error})"
            ) from error
        config: Any = layer.module.config
        scores = checked(table, (config.num_hidden_layers, layer.kv_heads), description).clamp(0, 1)
        return Pattern(scores[layer.index][None], sink_size, recent_size)

    def select(self, evidence: Sequence[HeadScores], budget: Budget) -> list[Selection]:
        """Everything in retrieval heads, both ends in the others."""
        scores = torch.stack([layer.scores[..., 0] for layer in evidence], dim=1)  # (B, L, H)
        heads, tokens = scores[0].numel(), evidence[0].scores.shape[-1]
        sink_size, recent_size = evidence[0].sink_size, evidence[0].recent_size
        short = min(tokens, sink_size + max(1, recent_size))

        # Entries per head (B, L, H): as many short heads as the budget needs, or their fixed share.
        if self.head_compression_ratio is None:
            counts = shorten(scores.flatten(1), tokens, short, heads * budget.entries(tokens)).view_as(scores)
        else:
            lowest = Selection.top(-scores.flatten(1)[:, None], self._short_heads(heads)).keep
            counts = torch.where(lowest.view_as(scores), short, tokens)

        return [Selection(ends(of_layer, sink_size, tokens)) for of_layer in counts.unbind(1)]

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write a pattern in the authors' format: scores without training, averaged over the pieces."""
        lines = ["\t".join(f"{score:.9f}" for score in row) for row in mean_scores(model, pieces).tolist()]
        (folder / "full_attention_heads.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sizes = json.dumps({"sink_size": SINK_SIZE, "recent_size": RECENT_SIZE})
        (folder / "config.json").write_text(sizes, encoding="utf-8")

    def _short_heads(self, heads: int) -> int:
        """How many of so many heads are short, where a share of them is given."""
        return round(heads * (self.head_compression_ratio or 0.0))

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Exact by ratio, or where the size of short heads is given.

        Else short heads keep at least one entry and at most all.
        """
        if self.head_compression_ratio is None:
            return super().entry_bounds(layers, heads, tokens, budget)
        short = self._short_heads(layers * heads)
        full = (layers * heads - short) * tokens
        if self.on_the_fly_scoring or (self.sink_size is not None and self.recent_size is not None):
            sink = SINK_SIZE if self.sink_size is None else self.sink_size
            recent = RECENT_SIZE if self.recent_size is None else self.recent_size
            exact = full + short * min(tokens, sink + max(1, recent))
            return exact, exact
        return full + short, full + short * tokens


def head_scores(layer: LayerObservation) -> Tensor:
    """(B, H): how far back heads look, found without training.

    A head's typical query attends to copies of its typical key at `POSITIONS` positions; the score is the
    area under the cumulated attention: 1 where all goes to the first copy, near 0 where all goes to the last.
    """
    # The typical query at the last position, the typical key at every position.
    query = layer.queries_before_rope().mean(2, keepdim=True)
    key = layer.keys_before_rope().mean(2, keepdim=True)
    rotary = layer.rotary
    cos, sin = rotary.at(torch.arange(POSITIONS, device=layer.keys.device))
    queries = rotary.turn(query, cos[:, -1:], sin[:, -1:])  # (B, H * G, 1, d)
    keys = rotary.turn(key.expand(-1, -1, POSITIONS, -1), cos, sin).repeat_interleave(layer.group, dim=1)

    attention = (queries @ keys.mT * layer.scale).float().softmax(-1)[:, :, 0]
    return mean_over_group(attention.cumsum(-1).mean(-1), layer.group)


def mean_scores(model: nn.Module, pieces: Iterable[Sequence[int]]) -> Tensor:
    """(L, H) in double precision: the heads' scores without training, averaged over pieces of text.

    They are 1 in layers that are left whole.
    """
    scores: dict[int, list[Tensor]] = {}

    def collect(layer: LayerObservation) -> None:
        scores.setdefault(layer.index, []).append(head_scores(layer)[0].double().cpu())

    observe_pieces(model, pieces, collect)
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    means = {index: torch.stack(of_layer).mean(0) for index, of_layer in scores.items()}
    whole = torch.ones_like(next(iter(means.values())))
    return torch.stack([means.get(index, whole) for index in range(layers)])
