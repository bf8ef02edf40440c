"""Key re-rotation: give kept keys neighbouring positions, as if the evicted tokens had never been there.

The key kept at rank m, cached at position p, is rotated by m - p; the question continues at the number of
kept entries. Source: Xiao et al. 2023 (StreamingLLM's positions within the cache), arXiv 2309.17453; kvpress
0.5.5. Differs: works inside other wrappers, and with every kind of rotary embedding that scales angles (the
model's own cosines and sines are used, on the channels that the model pairs). Refused where sliding-window
layers, left whole, would keep their old positions. Cost: one rotation per kept key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvcache.compressing import Prefill
from kvcache.observation import LayerObservation
from kvcache.rotary import Rotary
from kvcache.selection import Selection
from presses.base import BasePress
from presses.knorm import KnormPress
from presses.wrapper import WrapperPress


@dataclass(frozen=True)
class Moved(Selection):
    """A selection whose entries move together.

    Attributes:
        inner: as the press inside made it.
        rotary: the layer's rotary embedding.
    """

    inner: Selection
    rotary: Rotary


@dataclass(frozen=True)
class KeyRerotationPress(WrapperPress):
    """New positions for what another press keeps.

    Attributes:
        press: that selects.
        compression_ratio: fraction of entries removed, in [0, 1).
    """

    whole_context: ClassVar[bool] = True

    press: BasePress = KnormPress()
    compression_ratio: float | None = None  # type: ignore[assignment]

    def observe(self, layer: LayerObservation) -> tuple[Any, Any]:
        """What the press inside observes, and the layer's rotary embedding."""
        return self.press.observe(layer), layer.rotary

    def probe(self, prefill: Prefill, evidence: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        """What the press inside probes, and the layers' rotary embeddings."""
        inner = self.press.probe(prefill, [seen for seen, _ in evidence])
        return [(seen, rotary) for seen, (_, rotary) in zip(inner, evidence, strict=True)]

    def select(self, evidence: Sequence[tuple[Any, Any]], ratio: float) -> list[Selection]:
        """What the press inside selects."""
        inner = self.press.select([seen for seen, _ in evidence], ratio)
        return [
            Moved(selection.keep, selection, rotary)
            for selection, (_, rotary) in zip(inner, evidence, strict=True)
        ]

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys turned from their old to their new positions; values as the press inside gives them."""
        assert isinstance(selection, Moved)
        keys, values = self.press.apply(keys, values, selection.inner)
        return turned(keys, selection), values

    def next_position(self, selections: Sequence[Selection]) -> int:
        """The number of kept entries (of the fullest head)."""
        return max(int(selection.counts.max()) for selection in selections)


def turned(keys: Tensor, selection: Moved) -> Tensor:
    """Kept keys (B, H, K, d), in the order of their positions, at the positions 0 … K - 1."""
    old = selection.positions  # (B, H, K), rising
    cos, sin = selection.rotary.at(torch.arange(selection.keep.shape[-1], device=keys.device))
    cos, sin = cos[0].float(), sin[0].float()  # (T, r)
    size = torch.hypot(
        cos[0, 0], sin[0, 0]
    )  # attention scaling of YaRN and its kin, already in the cached keys
    new = torch.arange(old.shape[-1], device=keys.device)
    # cos(new - old) and sin(new - old), from the model's own tables
    turn_cos = (cos[new] * cos[old] + sin[new] * sin[old]) / size**2  # (B, H, K, r)
    turn_sin = (sin[new] * cos[old] - cos[new] * sin[old]) / size**2
    rotated = selection.rotary.turn(
        keys.flatten(0, 1)[:, None], turn_cos.flatten(0, 1), turn_sin.flatten(0, 1)
    )
    return rotated.view_as(keys).to(keys.dtype)
