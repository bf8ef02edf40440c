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
        chosen = positions[..., :kept]
        for start in range(kept, layer.tokens, self.block_size):
            seen = torch.cat(
                (chosen, positions[..., start : start + self.block_size]), dim=-1
            )  # (B, H, m), rising
            best = Selection.top(self._score(layer, seen, budget), kept)
            chosen = seen.gather(-1, best.positions)
        return Selection(
            torch.zeros(layer.keys.shape[:3], dtype=torch.bool, device=chosen.device).scatter_(
                -1, chosen, True
            )
        )

    def _score(self, layer: LayerObservation, seen: Tensor, budget: Budget) -> Tensor:
        """(B, H, m) scores of the entries at `seen`, as if there were no others."""
        if not layer.hidden.shape[-1]:
            return self._scores(
                replace(layer, keys=gather(layer.keys, seen), values=gather(layer.values, seen), _memo={}),
                seen,
                budget,
            )
        heads = [
            self._scores(_at(layer, seen[:, head]), seen, budget)[:, head] for head in range(seen.shape[1])
        ]
        return torch.stack(heads, dim=1)

    def _scores(self, layer: LayerObservation, seen: Tensor, budget: Budget) -> Tensor:
        after = int(seen[0, 0, -1]) + 1 - seen.shape[-1]

        def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
            return layer.rope(positions + after)

        fingerprints = tuple(zlib.crc32(str(after).encode(), row) for row in layer.fingerprints)
        return self.press.scores_at(
            [self.press.observe(replace(layer, rope=rope, fingerprints=fingerprints, _memo={}))], budget
        )[0]


def _at(layer: LayerObservation, seen: Tensor) -> LayerObservation:
    """The tokens at positions `seen` (B, m) of `layer`, the same for all its heads."""

    def rows(states: Tensor) -> Tensor:  # (B or 1, T, *) to (B, m, *)
        return states.expand(len(seen), -1, -1).gather(1, seen[..., None].expand(-1, -1, states.shape[-1]))

    everywhere = seen[:, None].expand(-1, layer.keys.shape[1], -1)
    return replace(
        layer,
        hidden=rows(layer.hidden),
        keys=gather(layer.keys, everywhere),
        values=gather(layer.values, everywhere),
        cos=rows(layer.cos),
        sin=rows(layer.sin),
        token_ids=None if layer.token_ids is None else layer.token_ids.gather(1, seen),
        whole=layer,
        _memo={},
    )
