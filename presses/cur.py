"""CUR: keep keys and values of large leverage, approximated by their norms.

score_t = share of ‖k_t‖² among its `local_window_size` neighbours times the same share of ‖v_t‖²; the first
`num_sinks` tokens are kept.
Source: Sengupta et al. 2025 (CurDKV), arXiv 2509.15038; kvpress 0.5.5.
Differs: the optional random projection is drawn per seed, layer and context, the same on every device.
Entries of zero norm count 0.
Cost: two norms per entry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.leverage import gaussian
from presses.scorer import ScorerPress
from presses.support.checks import check_least

PROJECTED_SIZE = 20
"""Channels after the random projection."""

TYPES = ("key", "value", "kv_avg", "kv_product")
"""What may count: keys, values, their mean, their product."""


@dataclass(frozen=True)
class CURPress(ScorerPress):
    """Local shares of squared norms.

    Attributes:
        num_sinks: first tokens, always kept.
        leverage_type: what counts: "key", "value", their mean "kv_avg" or their product "kv_product".
        use_random_leverage: whether keys and values are first projected by one random matrix.
        use_local_approximation: whether norms are taken relative to their neighbours.
        local_window_size: tokens of a neighbourhood.
        seed: of the random projection, together with the layer and the content of the context.
    """

    num_sinks: int = 4
    leverage_type: str = "kv_product"
    use_random_leverage: bool = False
    use_local_approximation: bool = True
    local_window_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown type, negative sinks and an empty window."""
        super().__post_init__()
        if self.leverage_type not in TYPES:
            raise ValueError(f"leverage_type={self.leverage_type!r} must be one of {', '.join(TYPES)}")
        check_least(0, "token", num_sinks=self.num_sinks)
        check_least(1, "token", local_window_size=self.local_window_size)

    @property
    def traits(self) -> Traits:
        """Keys and values are all that is looked at."""
        return replace(super().traits, reads_hidden_states=False)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): shares that sum to 1 over the context, the sinks at 1."""
        keys, values = layer.keys.float(), layer.values.float()
        if self.use_random_leverage:
            drawn = gaussian(layer, self.seed, keys.shape[-1], PROJECTED_SIZE)[:, None]
            projection = drawn / PROJECTED_SIZE**0.5
            keys, values = keys @ projection, values @ projection
        of_keys, of_values = self._shares(keys), self._shares(values)
        kinds = {
            "key": of_keys,
            "value": of_values,
            "kv_avg": (of_keys + of_values) / 2,
            "kv_product": of_keys * of_values,
        }
        scores = _relative(kinds[self.leverage_type])
        return scores.masked_fill(torch.arange(layer.tokens, device=scores.device) < self.num_sinks, 1.0)

    def _shares(self, states: Tensor) -> Tensor:
        """(B, H, T): squared norms, relative to those of the neighbourhood."""
        squares = states.square().sum(-1)
        if not self.use_local_approximation:
            return squares
        tokens = squares.shape[-1]
        padded = functional.pad(squares, (0, -tokens % self.local_window_size))
        windows = padded.unflatten(-1, (-1, self.local_window_size))
        return _relative(windows).flatten(2)[..., :tokens]


def _relative(numbers: Tensor) -> Tensor:
    """Shares of the sum over the last dimension; 0 where all are 0."""
    return numbers / numbers.sum(-1, keepdim=True).clamp_min(torch.finfo(numbers.dtype).tiny)
