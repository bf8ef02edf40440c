"""SnapKV: keep what the last `window_size` queries attend to.

score_t = pool( mean over the window of softmax(q·k_t/√d) ), averaged over the query heads of a group; the
window itself is kept. Source: Li et al. 2024, arXiv 2404.14469; authors' snapkv_utils.py.
Differs: averages the query heads of a group (the authors expand KV heads). A budget below the window keeps
its most recent tokens; a context of at most `window_size` tokens is scored with the second half as window.
Cost: one attention of `window_size` queries per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from presses.scorer import ScorerPress, mean_over_group, pin


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
        if self.window_size < 1:
            raise ValueError(f"window_size={self.window_size} must be at least 1 token")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={self.kernel_size} must be odd and positive, so that pooling keeps positions in place"
            )

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T): pooled attention of the window, the window on top."""
        window = self.window_size if layer.tokens > self.window_size else max(1, layer.tokens // 2)
        votes = layer.window_attention(window)[..., : layer.tokens - window].mean(dim=2)  # (B, H * G, T - w)
        if votes.shape[-1]:
            votes = functional.avg_pool1d(votes, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return pin(functional.pad(mean_over_group(votes, layer.group), (0, window)), last=window)
