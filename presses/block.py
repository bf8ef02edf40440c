"""Block: read the context block by block within a fixed budget, as a model with a small cache would.

The first tokens fill the budget; every following block of `block_size` tokens is scored together with what is
kept so far, and the best of both stay.
Source: Park et al. 2025 (KeyDiff), arXiv 2504.15364; kvpress 0.5.5.
Differs: works with every scorer: it sees the kept tokens and the block with their own hidden states,
positions and rotations, head by head where it looks at hidden states (kvpress joins slices of different
tokens). Hidden states are those of a full prefill.
Cost: the scorer once per block and ratio; the hidden states of all layers are held until then if the scorer
looks at them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.keydiff import KeyDiffPress
from presses.scorer import ScorerPress
from presses.support.checks import check_least
from presses.wrapper import ScoreWrapperPress


@dataclass(frozen=True)
class BlockPress(ScoreWrapperPress):
    """Streaming top-k.

    Attributes:
        press: that scores what is kept and the next block.
        compression_ratio: fraction of entries removed, in [0, 1).
        block_size: tokens read at a time.
    """

    press: ScorerPress = KeyDiffPress()
    compression_ratio: float | None = None  # type: ignore[assignment]
    block_size: int = 128

    def __post_init__(self) -> None:
        """Refuse empty blocks."""
        super().__post_init__()
        check_least(1, "token", block_size=self.block_size)

    @property
    def traits(self) -> Traits:
        """Hidden states are kept where the press inside looks at them."""
        return replace(super().traits, keeps_hidden_states=self.press.traits.reads_hidden_states)

    def observe(self, layer: LayerObservation) -> LayerObservation:
        """The layer itself, without its hidden states if the press inside does not look at them."""
        hidden = layer.hidden if self.press.traits.reads_hidden_states else layer.hidden[:, :, :0]
        return replace(layer, hidden=hidden, _memo={})

    def entry_metadata(self, evidence: LayerObservation) -> None:
        """Nothing: the press inside has looked at single blocks only."""

    def select(self, evidence: Sequence[LayerObservation], budget: Budget) -> list[Selection]:
        """What is left after the last block, `budget.entries(T)` entries per head."""
        return [self._stream(layer, budget) for layer in evidence]

    def _stream(self, layer: LayerObservation, budget: Budget) -> Selection:
        kept = budget.entries(layer.tokens)
        positions = torch.arange(layer.tokens, device=layer.keys.device).expand(layer.keys.shape[:3])

        # The first tokens fill the budget; of them and the next block, the best stay.
        chosen = positions[..., :kept]
        for start in range(kept, layer.tokens, self.block_size):
            block = positions[..., start : start + self.block_size]
            candidates = torch.cat((chosen, block), dim=-1)  # (B, H, m), rising
            best = Selection.top(self._score(layer, candidates, budget), kept)
            chosen = candidates.gather(-1, best.positions)

        keep = torch.zeros(layer.keys.shape[:3], dtype=torch.bool, device=chosen.device)
        return Selection(keep.scatter_(-1, chosen, True))

    def _score(self, layer: LayerObservation, candidates: Tensor, budget: Budget) -> Tensor:
        """(B, H, m) scores of the entries at positions `candidates` (B, H, m), as if there were no others."""
        if not layer.hidden.shape[-1]:
            keys, values = gather(layer.keys, candidates), gather(layer.values, candidates)
            return self._scores(replace(layer, keys=keys, values=values, _memo={}), candidates, budget)

        # Hidden states are those of a head's own candidates, so each head is scored in a layer of its own.
        heads = []
        for head in range(candidates.shape[1]):
            alone = _at(layer, candidates[:, head])
            heads.append(self._scores(alone, candidates, budget)[:, head])
        return torch.stack(heads, dim=1)

    def _scores(self, layer: LayerObservation, candidates: Tensor, budget: Budget) -> Tensor:
        """(B, H, m) scores of a layer that holds the candidates alone."""
        # Positions after the candidates are those after the last of them.
        last, many = int(candidates[0, 0, -1]), candidates.shape[-1]
        after = last + 1 - many

        def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
            return layer.rope(positions + after)

        fingerprints = tuple(zlib.crc32(str(after).encode(), row) for row in layer.fingerprints)
        alone = replace(layer, rope=rope, fingerprints=fingerprints, _memo={})
        return self.press.scores_at([self.press.observe(alone)], budget)[0]


def _at(layer: LayerObservation, positions: Tensor) -> LayerObservation:
    """The tokens at `positions` (B, m) of `layer`, the same for all its heads."""

    def rows(states: Tensor) -> Tensor:
        """(B or 1, T, *) to (B, m, *)."""
        index = positions[..., None].expand(-1, -1, states.shape[-1])
        return states.expand(len(positions), -1, -1).gather(1, index)

    everywhere = positions[:, None].expand(-1, layer.keys.shape[1], -1)
    return replace(
        layer,
        hidden=rows(layer.hidden),
        keys=gather(layer.keys, everywhere),
        values=gather(layer.values, everywhere),
        cos=rows(layer.cos),
        sin=rows(layer.sin),
        token_ids=None if layer.token_ids is None else layer.token_ids.gather(1, positions),
        whole=layer,
        _memo={},
    )
