"""How an attention turns its queries and keys by position.

Models differ in this and none says how, so it is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.modules import kind_of
from kvcache.projections import head_size
from kvcache.rope_frequencies import turn


@dataclass(frozen=True)
class Layout:
    """Which channels of a head are turned together, and how the model's cosines and sines are to be read.

    Attributes:
        name: what it is, and where it occurs.
        whole: the model's table (B, n, *) to one of (B, n, r) with a factor for every turned channel.
        neighbours: whether channel 2i is paired with 2i + 1, instead of i with i + r / 2.
    """

    name: str
    whole: Callable[[Tensor], Tensor]
    neighbours: bool = False


def _as_it_is(table: Tensor) -> Tensor:
    return table


def _twice(table: Tensor) -> Tensor:
    return torch.cat((table, table), dim=-1)


def _by_pairs(table: Tensor) -> Tensor:
    return table.repeat_interleave(2, -1)


def _first_half_by_pairs(table: Tensor) -> Tensor:
    return table[..., : table.shape[-1] // 2].repeat_interleave(2, -1)


LAYOUTS = (
    Layout("halves, as in Llama and its kin", _as_it_is),
    Layout("halves, from one factor per pair, as in GPT-OSS", _twice),
    Layout("neighbours, as in Cohere", _as_it_is, neighbours=True),
    Layout("neighbours, from one factor per pair, as in DeepSeek V2", _by_pairs, neighbours=True),
    Layout("neighbours, from a table for halves, as in GLM", _first_half_by_pairs, neighbours=True),
)
"""The layouts that are tried."""

NONE = Layout("not at all, as in some layers of SmolLM3 and Cohere2", _as_it_is)
"""The layout of attentions without rotary embedding; it is tried last."""


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding of one layer.

    Attributes:
        rope: positions (n,) to the model's own (cos, sin), each (1, n, *).
        layout: how they are read.
    """

    rope: Callable[[Tensor], tuple[Tensor, Tensor]]
    layout: Layout

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of positions (n,), each (1, n, r) with a factor for every turned channel."""
        return read(self.layout, *self.rope(positions))

    def turn(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """States (B, *, T, d) turned by factors (B or 1, T, r) such as `at` gives."""
        return rotate(states, cos, sin, self.layout.neighbours)


def read(layout: Layout, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The model's (cos, sin), each (B, n, *), with a factor for every turned channel (B, n, r)."""
    if layout is NONE:
        return torch.ones_like(cos), torch.zeros_like(sin)
    return layout.whole(cos), layout.whole(sin)


def find_layout(before: Tensor, after: Tensor, cos: Tensor, sin: Tensor) -> Layout | None:
    """The layout that turns states `before` (B, H, n, d) into those `after`; None if none does.

    Of several, the closest: at position 0 nothing is turned, and all of them fit.

    Args:
        before: without rotary embedding.
        after: with it.
        cos: the model's, (B, n, *).
        sin: like cos.
    """
    after, closest, least = after.float(), None, float("inf")
    for layout in (*LAYOUTS, NONE):
        factors = read(layout, cos, sin)
        if factors[0].shape[-1] > before.shape[-1]:
            continue
        turned = rotate(before, *factors, layout.neighbours).float()
        error = float((turned - after).abs().max())
        close = torch.allclose(turned, after, rtol=2e-2, atol=2e-2 * float(after.abs().max()))
        if close and error < least:
            closest, least = layout, error
    return closest


def rotate(states: Tensor, cos: Tensor, sin: Tensor, neighbours: bool = False) -> Tensor:
    """Apply rotary embedding to states (B, *, T, d).

    Args:
        states: to be turned.
        cos: (B or 1, T, r) with r <= d; where r < d (partial rotary), the other channels pass unchanged.
        sin: like cos.
        neighbours: whether channel 2i is paired with 2i + 1, instead of i with i + r / 2 as in Llama.
    """
    cos, sin = cos[:, None].to(states.dtype), sin[:, None].to(states.dtype)
    size = cos.shape[-1]
    turned, rest = states[..., :size], states[..., size:]
    if neighbours:
        crossed = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        crossed = torch.cat((-turned[..., size // 2 :], turned[..., : size // 2]), dim=-1)
    turned = turned * cos + crossed * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def rotary_factors(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(cos, sin) that an attention module was called with; those that turn nothing where it gets none.

    Raises:
        ValueError: it was called with something else.
    """
    factors = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)
    if factors is None:
        hidden = args[0] if args else kwargs["hidden_states"]
        return _no_turn(module, hidden, hidden.shape[1])
    if isinstance(factors, Tensor) and factors.is_complex():
        return factors.real, factors.imag
    if not (isinstance(factors, tuple) and len(factors) == 2):
        raise ValueError(
            f"{type(module).__name__} gets no cosines and sines of positions: longpress supports rotary "
            "embedding only"
        )
    return factors


def _no_turn(module: Any, like: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (1, tokens, d), that leave queries and keys as they are."""
    ones = like.new_ones(1, tokens, head_size(module))
    return ones, torch.zeros_like(ones)


def rope_of(
    decoder: nn.Module,
    module: nn.Module,
    like: Tensor,
    *,
    start: int = 0,
    rope_lengths: Sequence[int] | None = None,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The model's own rotary embedding, for any positions; Gemma3 and OLMo3 keep one per kind of layer.

    Args:
        decoder: the stack of layers, which owns the embedding.
        module: the attention module of the layer.
        like: (B, n, D) hidden states, for dtype and device.
        start: position from which the given ones are counted.
        rope_lengths: of the rows that are looked at, all of one length (see `rope_frequencies`); None where
            frequencies do not depend on the length of the text.

    Returns:
        Positions (n,) to (cos, sin), each (1, n, *).
    """
    # LFM2-MoE names it otherwise; Nemotron-H and some Granite hybrids have none.
    embedding: Any = getattr(decoder, "rotary_emb", getattr(decoder, "pos_emb", None))
    kind = kind_of(module)
    per_kind = kind is not None and hasattr(embedding, f"{kind}_inv_freq")
    sample = like[:1, :1].clone()  # a view would keep all hidden states alive

    if embedding is None:
        return lambda positions: _no_turn(module, sample, len(positions))

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        at = (positions + start)[None].to(sample.device)  # layers may lie on other devices than the embedding
        if rope_lengths is not None:
            made = turn(embedding, sample, at, rope_lengths[:1], kind if per_kind else None)
        else:
            made = embedding(sample, at, kind) if per_kind else embedding(sample, at)
        cos, sin = (made.real, made.imag) if isinstance(made, Tensor) else made
        return cos.to(positions.device), sin.to(positions.device)

    return rope
