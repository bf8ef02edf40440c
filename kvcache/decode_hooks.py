"""What acts while an answer is written: a follower sees its row's entries and new tokens in one layer, and may drop or change entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from kvcache.cache import CompressedLayer
from kvcache.observation import LayerObservation, rope_of
from kvcache.selection import Selection, gather
from kvcache.storage import Kept, Storage


@dataclass(frozen=True)
class DecodingObservation(LayerObservation):
    """One row's layer (B = 1) after the attention of a forward pass: all entries of its cache, and the last n tokens alone.

    `keys`, `values` (1, H, K, d) are in order of position, `hidden` (1, n, D), `cos` and `sin` those of the
    last n tokens, which are the last n entries. What needs hidden states of older tokens is refused.

    Attributes:
        valid: (1, H, K) bool; False for padding (zeros) in heads that keep fewer entries than others.
        next_position: of the next token of the text, which is also how many tokens there were, those evicted
            included.
        notes: (1, H, K - n, m) what the press noted of the entries in the prefill; None once a follower has
            changed them.
    """

    valid: Tensor | None = None
    next_position: int = 0
    notes: Tensor | None = None

    def queries_before_rope(self, last: int | None = None) -> Tensor:
        """(1, H * G, m, d) of the last m = min(last, n) tokens.

        Raises:
            ValueError: the queries of all tokens are asked for.
        """
        if last is None:
            raise ValueError(
                "queries of the whole context are gone while decoding; use a press that scores keys, values or a window"
            )
        return super().queries_before_rope(min(last, self.hidden.shape[1]))

    def queries(self, last: int | None = None) -> Tensor:
        """(1, H * G, m, d) of the last m = min(last, n) tokens."""
        if last is None:
            return self.queries_before_rope()
        return super().queries(min(last, self.hidden.shape[1]))

    def window_attention(self, last: int) -> Tensor:
        """(1, H * G, m, K) attention of the last m = min(last, n) tokens to the entries that exist."""
        attention = super().window_attention(min(last, self.hidden.shape[1]))
        if self.valid is None or bool(self.valid.all()):
            return attention
        attention = attention * self.valid.repeat_interleave(self.group, dim=1)[:, :, None]
        return attention / attention.sum(-1, keepdim=True)

    def with_tokens(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Self:
        """The same entries, with the hidden states and rotations of more of the last tokens, each (1, n, *)."""
        return replace(self, hidden=hidden, cos=cos, sin=sin, _memo={})

    def new_tokens(self) -> LayerObservation:
        """The last n tokens as if they were all of the context: what scores entries one by one needs no more."""
        n = self.hidden.shape[1]
        keys, values = self.keys[:, :, -n:], self.values[:, :, -n:]
        return LayerObservation(
            self.index,
            self.module,
            self.hidden,
            keys,
            values,
            self.cos,
            self.sin,
            self.rope,
            self.fingerprints,
        )

    def keys_before_rope(self) -> Tensor:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "keys before rotation are gone while decoding; use a press that scores keys, values or a window of queries"
        )


class Follower(ABC):
    """Acts on one layer of one row, after each forward pass; made anew for every row, so it may hold state."""

    def held_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """Bytes that the state takes at most.

        Args:
            entries: of the row in this layer, over all heads, before anything is dropped.
            tokens: of the question and of the answer.
            token_bytes: of the hidden state and the rotary factors of one token.
        """
        return 0

    @abstractmethod
    def follow(self, layer: DecodingObservation) -> Selection | None:
        """Which entries (1, H, K) stay, None for all. The question is one pass, every written token one more."""

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys and values, in the order of `selection.positions`, from all of them (1, H, K, d). New tensors."""
        return gather(keys, selection.positions), gather(values, selection.positions)


def follow(
    layer: CompressedLayer, decoder: nn.Module, module: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor
) -> None:
    """Let the rows' followers act after a forward pass with new tokens hidden (R, n, D), or remember the pass while `layer` is held."""
    for row, follower in enumerate(layer.followers):
        if follower is None:
            continue
        at = slice(row, row + 1)
        new = (hidden[at], cos[at] if len(cos) > 1 else cos, sin[at] if len(sin) > 1 else sin)
        if layer.held is not None:
            layer.held.setdefault(row, []).append((decoder, module, *new))
        else:
            _act(layer, row, follower, decoder, module, *new)


def release(layer: CompressedLayer) -> None:
    """Let followers act on the passes held back, as on one: pieces and padding of a question do not count."""
    held, layer.held = layer.held or {}, None
    for row, passes in held.items():
        n = int(layer.lengths[row])
        hidden, cos, sin = (torch.cat([one[part] for one in passes], dim=1)[:, :n] for part in (2, 3, 4))
        _act(layer, row, layer.followers[row], passes[0][0], passes[0][1], hidden, cos, sin)


@torch.no_grad()
def _act(
    layer: CompressedLayer,
    row: int,
    follower: Follower,
    decoder: nn.Module,
    module: nn.Module,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> None:
    keys, values, valid, positions = layer.row_entries(row)
    index: Any = module.layer_idx
    position = int(layer.start[row] + layer.lengths[row])
    notes, rope = layer.notes[row], rope_of(decoder, module, hidden)
    noted = None if notes is None else notes[None]
    seen = DecodingObservation(
        index,
        module,
        hidden,
        keys,
        values,
        cos,
        sin,
        rope,
        (position,),
        valid=valid,
        next_position=position,
        notes=noted,
    )
    selection = follower.follow(seen)
    if selection is None:
        return
    selection = replace(selection, keep=selection.keep & valid)
    if bool((selection.counts == 0).any()):
        raise ValueError(f"a press emptied a head of layer {index} while decoding; it must leave one entry")
    if bool((selection.keep == valid).all()) and type(follower).apply is Follower.apply:
        return
    kept_keys, kept_values = follower.apply(keys, values, selection)
    before, tail = layer.kept()[row].storage, int(layer.lengths[row])
    kept_positions = None if positions is None else positions.gather(-1, selection.positions[0])
    counts = selection.counts[0]
    if before.bits is not None and before.channels is None and type(follower).apply is Follower.apply:
        new = layer.tail_keys[row, :, :tail], layer.tail_values[row, :, :tail]
        storage = before.moved(*new, selection.positions[0], kept_positions)
    else:
        storage = Storage(kept_keys[0], kept_values[0], kept_positions, before.window)
        storage = storage if before.bits is None else storage.quantised(before.bits, counts, movable=True)
    layer.replace_row(row, Kept(storage, None if bool((counts == kept_keys.shape[2]).all()) else counts))
