"""SnapKV: keep what the last `window_size` queries attend to.

score_t = pool( mean over the window of softmax(q·k_t/√d) ), averaged over the query heads of a group; the
window itself is kept.
Source: Li et al. 2024, arXiv 2404.14469; authors' snapkv_utils.py.
Differs: averages the query heads of a group (the authors expand KV heads). A budget below the window keeps
its most recent tokens; a context of at most `window_size` tokens is scored with the second half as window.
Cost: one attention of `window_size` queries per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kvcache.observation import LayerObservation
from kvcache.traits import Traits
from presses.scorer import ScorerPress
from presses.support.checks import check_kernel, check_least
from presses.support.scores import mean_over_group
from presses.support.windows import smoothed, votes_of_window, with_window


@dataclass(frozen=True)
class SnapKVPress(ScorerPress):
    """Attention of the last queries, pooled over neighbours.

    Attributes:
        window_size: last tokens, whose queries vote and which are always kept.
        kernel_size: width of the average pooling over positions, odd.
    """

    window_size: int = 64
    kernel_size: int = 5

    def __post_init__(self) -> None:
        """Refuse an empty window and an even kernel."""
        super().__post_init__()
        check_least(1, "token", window_size=self.window_size)
        check_kernel(self.kernel_size)

    @property
    def traits(self) -> Traits:
        """Attention of the window."""
        return replace(super().traits, window_queries=self.window_size)

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): pooled attention of the window, the window on top."""
        votes = smoothed(votes_of_window(layer, self.window_size).mean(dim=2), self.kernel_size)
        return with_window(mean_over_group(votes, layer.group), layer.tokens)
