"""What acts while an answer is written.

A decode hook sees its row's entries and new tokens in one layer, and may drop or change entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from kvcache.cache import CompressedLayer
from kvcache.observation import AttentionInputs, LayerObservation
from kvcache.rotary import rope_of
from kvcache.selection import Selection, gather
from kvcache.storage import KVStorage, KVView


@dataclass(frozen=True)
class DecodingObservation(LayerObservation):
    """One row's layer (B = 1) after the attention of a forward pass.

    It has all entries of the row's cache, `keys` and `values` (1, H, K, d) in order of position, but hidden
    states of the last n tokens alone: `hidden` (1, n, D), `cos` and `sin` are of these, which are the last n
    entries. What needs hidden states of older tokens is refused.

    Attributes:
        valid: (1, H, K) bool; False for padding (zeros) in heads that keep fewer entries than others.
        next_position: of the next token of the text, which is also how many tokens there were, those evicted
            included.
        entry_metadata: (1, H, K - n, m) what the press noted of the entries in the prefill; None once a
            decode hook has changed them.
    """

    valid: Tensor | None = None
    next_position: int = 0
    entry_metadata: Tensor | None = None

    def queries_before_rope(self, last: int | None = None) -> Tensor:
        """(1, H * G, m, d) of the last m = min(last, n) tokens.

        Raises:
            ValueError: the queries of all tokens are asked for.
        """
        if last is None:
            raise ValueError(
                "queries of the whole context are gone while decoding; use a press that scores keys, values "
                "or a window"
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
        """The same entries, with hidden states and rotary factors (1, n, *) of more of the last tokens."""
        return replace(self, hidden=hidden, cos=cos, sin=sin, _memo={})

    def new_tokens(self) -> LayerObservation:
        """The last n tokens as if they were all of the context.

        What scores entries one by one needs no more.
        """
        n = self.hidden.shape[1]
        return LayerObservation.build(
            self.module,
            AttentionInputs(self.hidden, self.cos, self.sin),
            self.keys[:, :, -n:],
            self.values[:, :, -n:],
            self.rope,
            fingerprints=self.fingerprints,
        )

    def keys_before_rope(self) -> Tensor:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "keys before rotation are gone while decoding; use a press that scores keys, values or a window "
            "of queries"
        )


class DecodeHook(ABC):
    """Acts on one layer of one row, after each forward pass.

    It is made anew for every row, so it may hold state.
    """

    only_selects: ClassVar[bool] = True
    """Whether `apply` does nothing but pick entries."""

    def state_bytes(self, entries: int, tokens: int, token_bytes: int) -> int:
        """Bytes that the state takes at most.

        Args:
            entries: of the row in this layer, over all heads, before anything is dropped.
            tokens: of the question and of the answer.
            token_bytes: of the hidden state and the rotary factors of one token.
        """
        return 0

    @abstractmethod
    def after_pass(self, layer: DecodingObservation) -> Selection | None:
        """Which entries (1, H, K) stay, None for all.

        Called after each pass: the question is one, every written token one more.
        """

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys and values, in the order of `selection.positions`, from all of them (1, H, K, d).

        Returns new tensors.
        """
        return gather(keys, selection.positions), gather(values, selection.positions)


class ForwardPass(NamedTuple):
    """One forward pass of a layer.

    Attributes:
        decoder: of the model.
        module: the layer's attention module.
        inputs: what the module was called with.
        rope_lengths: of the rows, where rotary frequencies depend on it.
    """

    decoder: nn.Module
    module: nn.Module
    inputs: AttentionInputs
    rope_lengths: Sequence[int] | None = None

    def of_row(self, row: int) -> ForwardPass:
        """The part of one row, as a batch of one."""
        of_row = slice(row, row + 1)
        hidden, cos, sin = self.inputs
        rotary = (factors[of_row] if len(factors) > 1 else factors for factors in (cos, sin))
        lengths = self.rope_lengths
        lengths = lengths[of_row] if lengths is not None and len(lengths) > 1 else lengths
        return self._replace(inputs=AttentionInputs(hidden[of_row], *rotary), rope_lengths=lengths)


def run_decode_hooks(layer: CompressedLayer, forward: ForwardPass) -> None:
    """Let the rows' decode hooks act after a forward pass.

    While `layer` holds them back, the pass is remembered instead.
    """
    for row, hook in enumerate(layer.decode_hooks):
        if hook is None:
            continue
        if layer.held_passes is not None:
            layer.held_passes.setdefault(row, []).append(forward.of_row(row))
        else:
            _run(layer, row, hook, forward.of_row(row))


def run_held_passes(layer: CompressedLayer) -> None:
    """Let decode hooks act on the passes that were held back, as on one pass.

    So the pieces in which a question was read, and its padding, do not count.
    """
    held, layer.held_passes = layer.held_passes or {}, None
    for row, passes in held.items():
        n = int(layer.lengths[row])
        joined = AttentionInputs.joined([forward.inputs for forward in passes])
        inputs = AttentionInputs(*(part[:, :n] for part in joined))
        _run(layer, row, layer.decode_hooks[row], passes[0]._replace(inputs=inputs))


@torch.no_grad()
def _run(layer: CompressedLayer, row: int, hook: DecodeHook, forward: ForwardPass) -> None:
    if layer.is_latent and not hook.only_selects:
        raise ValueError(
            "a press changes keys or values while decoding, but this model caches latent vectors that both "
            "are made of; use a press that only chooses entries"
        )

    # What the hook may look at: all entries of the row, those of the new tokens last.
    keys, values, valid, positions = layer.row_entries(row)
    next_position = int(layer.start[row] + layer.lengths[row])
    metadata = layer.entry_metadata[row]
    observation = DecodingObservation.build(
        forward.module,
        forward.inputs,
        keys,
        values,
        rope_of(forward.decoder, forward.module, forward.inputs.hidden, rope_lengths=forward.rope_lengths),
        fingerprints=(next_position,),
        valid=valid,
        next_position=next_position,
        entry_metadata=None if metadata is None else metadata[None],
    )

    # What it keeps.
    selection = hook.after_pass(observation)
    if selection is None:
        return
    selection = replace(selection, keep=selection.keep & valid)
    if bool((selection.counts == 0).any()):
        raise ValueError(
            f"a press emptied a head of layer {observation.index} while decoding; it must leave one entry"
        )
    if hook.only_selects and bool((selection.keep == valid).all()):
        return

    # Kept entries take the place of the row's own; quantised ones are not quantised again where that can be.
    kept_keys, kept_values = hook.apply(keys, values, selection)
    before, tail = layer.kept()[row].storage, int(layer.lengths[row])
    kept_positions = None if positions is None else positions.gather(-1, selection.positions[0])
    counts = selection.counts[0]
    if before.bits is not None and before.channels is None and hook.only_selects:
        new = layer.tail_keys[row, :, :tail], layer.tail_values[row, :, :tail]
        storage = before.moved(*new, selection.positions[0], kept_positions)
    else:
        storage = KVStorage(kept_keys[0], kept_values[0], kept_positions, before.window)
        storage = storage if before.bits is None else storage.quantised(before.bits, counts, movable=True)
    even = bool((counts == kept_keys.shape[2]).all())
    layer.replace_row(row, KVView(storage, None if even else counts))
