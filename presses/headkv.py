"""HeadKV: heads that look back at what was said before get more of the cache, on the scores of another press.

Every head has an importance s_h, averaged over the query heads of a group. Of an even budget of b entries, a
head keeps `window_size` and (b − window_size)(1 − 1/β) in any case; what remains of all heads together is
shared in proportion to s_h. Which entries stay, the press inside decides.
Source: Fu et al. 2024, "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated
Retrieval and Reasoning", arXiv 2410.19258; authors' repository FYYFU/HeadKV at 0862a09, whose head scores are
loaded.
Differs: KV heads share their cache among the query heads of a group (the authors store it once per query
head). Shares are exact in sum, and no head gets more than the context; β is the default of the authors'
command. `calibrate` scores heads of other models by the attention that repeated spans pay, under forced
tokens, to the token that followed when they stood in the text before (authors: needles that the model must
answer about).
Cost: that of the press inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.snapkv import SnapKVPress
from presses.support.budgets import apportion
from presses.support.checks import check_least
from presses.support.weights import checked, last_part, model_name, observe_pieces, read
from presses.wrapper import ScoreWrapperPress

ADDRESS = "https://raw.githubusercontent.com/FYYFU/HeadKV/{revision}/Important_Head/head_score"
"""Folder of the authors' head scores."""

PUBLISHED = ("Meta-Llama-3-8B-Instruct", "Mistral-7B-Instruct-v0.2")
"""Models whose head scores the authors publish."""

FILE = "head_scores.json"
"""Name of the file that `calibrate` writes."""

SPAN = 64
"""Tokens of a text that are repeated behind it."""


@dataclass(frozen=True)
class HeadKVPress(ScoreWrapperPress):
    """Head-wise budgets by retrieval.

    Attributes:
        press: whose scores are ranked.
        compression_ratio: fraction of all entries removed, in [0, 1).
        beta: 1 shares everything by importance, large values share evenly.
        window_size: last tokens' worth of entries that every head keeps in any case, as far as the budget
            allows.
        weights: local file or folder with the heads' scores; None for those published for the model.
        revision: of the authors' repository.
    """

    press: ScorerPress = SnapKVPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    beta: float = 1.5
    window_size: int = 32
    weights: str | None = None
    revision: str = "0862a0955fe82e9ff611d59541918e02c5def625"

    def __post_init__(self) -> None:
        """Refuse shares below 1 and a negative window."""
        super().__post_init__()
        check_least(1, beta=self.beta)
        check_least(0, "token", window_size=self.window_size)

    @property
    def traits(self) -> Traits:
        """There is a recipe to learn what the press needs to know of a model."""
        return replace(super().traits, has_recipe=True)

    def observe(self, layer: LayerObservation) -> tuple[Any, Tensor]:
        """What the press inside observes, and the importance (H,) of the layer's heads.

        Raises:
            ValueError: there are no scores for the model, or they are another model's.
        """
        name = model_name(layer.module)
        description = f"head scores of {name or 'a model without a name'}"
        published = last_part(name) if last_part(name) in PUBLISHED else None
        source = self.weights or (published and ADDRESS.format(revision=self.revision))
        file = FILE if self.weights else f"{published}_retrieval_reasoning_heads.json"
        text = read(source, file, self.revision, description)
        config: Any = layer.module.config
        shape = int(config.num_hidden_layers), layer.kv_heads * layer.group
        scores = head_table(str(text), shape, description)
        return self.press.observe(layer), scores[layer.index].unflatten(0, (-1, layer.group)).mean(-1)

    def of_press_inside(self, evidence: tuple[Any, Any]) -> Any:
        """The first part of the evidence."""
        return evidence[0]

    def select(self, evidence: Sequence[tuple[Any, Tensor]], budget: Budget) -> list[Selection]:
        """The top entries of every head, as many as its share gives."""
        ranked = self.press.scores_at([inner for inner, _ in evidence], budget)
        tokens, importance = ranked[0].shape[-1], torch.stack([heads for _, heads in evidence])  # (L, H)
        even = budget.entries(tokens)
        least = min(even, self.window_size + int(max(0, even - self.window_size) * (1 - 1 / self.beta)))
        shares = apportion(importance.flatten().tolist(), even * importance.numel(), least, tokens)
        counts = torch.tensor(shares, device=ranked[0].device).view_as(importance)
        return [
            Selection.top(scores, counts[at].expand(scores.shape[:2])) for at, scores in enumerate(ranked)
        ]

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write the heads' scores in the authors' format: of each query head a list, one number per piece."""
        scores: dict[str, list[float]] = {}
        for number, piece in enumerate(pieces):
            span = span_of(len(piece), depth=(0.1 + 0.2 * number) % 1)  # at another place in each piece

            def collect(layer: LayerObservation, span: tuple[int, int] = span) -> None:
                for head, score in enumerate(repeated_attention(layer, span).tolist()):
                    scores.setdefault(f"{layer.index}-{head}", []).append(score)

            observe_pieces(model, [[*piece, *piece[slice(*span)]]], collect)
        config: Any = model.config
        text = config.get_text_config()
        layers, heads = range(text.num_hidden_layers), range(text.num_attention_heads)
        names = [f"{layer}-{head}" for layer in layers for head in heads]
        table = {name: scores.get(name, [0.0]) for name in names}
        (folder / FILE).write_text(json.dumps(table), encoding="utf-8")


def head_table(text: str, shape: tuple[int, int], description: str) -> Tensor:
    """(L, H * G) mean scores from the authors' JSON: "layer-head" to a list of numbers.

    Raises:
        ValueError: it is in another format, or another model's.
    """
    try:
        means = {
            tuple(map(int, name.split("-"))): sum(scores) / len(scores)
            for name, scores in json.loads(text).items()
        }
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError(
            f"the file with {description} is in another format: it must map 'layer-head' to a list of numbers"
        ) from None
    layers, heads = 0, 0
    if means and all(len(name) == 2 for name in means):
        layers, heads = (1 + max(name[side] for name in means) for side in (0, 1))
    rows = [[means.get((layer, head), 0.0) for head in range(heads)] for layer in range(layers)]
    return checked(torch.tensor(rows), shape, description)


def span_of(tokens: int, depth: float) -> tuple[int, int]:
    """Where in a text the repeated span begins and ends; `depth` in [0, 1)."""
    length = min(SPAN, tokens // 3)
    start = int(depth * (tokens - length))
    return start, start + length


def repeated_attention(layer: LayerObservation, span: tuple[int, int]) -> Tensor:
    """(H * G,): mean attention that repeated tokens pay to what followed them when they stood there first.

    The last of them is left out.

    Args:
        layer: of a text with the tokens at `span` repeated behind its end.
        span: where they stand first.
    """
    start, stop = span
    length = stop - start
    attention = layer.window_attention(length)[0].float()  # (H * G, n, T)
    return attention[:, :-1, start + 1 : stop].diagonal(dim1=1, dim2=2).mean(-1)
