"""The last tokens of a context, whose queries vote for the tokens before them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kvcache.observation import LayerObservation
from presses.support.scores import pin


def window_within(tokens: int, window_size: int) -> int:
    """The window's tokens in a context of `tokens`: half of them where the window would be all of it."""
    return window_size if tokens > window_size else max(1, tokens // 2)


def votes_of_window(layer: LayerObservation, window_size: int) -> Tensor:
    """(B, H * G, w, T - w): attention of the window's queries to the tokens before it.

    Its size w is that of `window_within`.
    """
    window = window_within(layer.tokens, window_size)
    return layer.window_attention(window)[..., : layer.tokens - window]


def smoothed(votes: Tensor, kernel_size: int, *, largest: bool = False) -> Tensor:
    """(…, n) votes, each replaced by the mean of its neighbourhood, or by the largest vote in it.

    Args:
        votes: (…, n); n may be 0.
        kernel_size: positions of a neighbourhood, odd.
        largest: whether the largest vote is taken instead of the mean.
    """
    if not votes.shape[-1]:
        return votes
    pool = functional.max_pool1d if largest else functional.avg_pool1d
    return pool(votes, kernel_size, stride=1, padding=kernel_size // 2)


def with_window(votes: Tensor, tokens: int) -> Tensor:
    """(B, H, T): votes (B, H, T - w) for the tokens before the window, and the window above all of them."""
    window = tokens - votes.shape[-1]
    return pin(functional.pad(votes, (0, window)), last=window)
