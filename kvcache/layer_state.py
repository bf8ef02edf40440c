"""What layers of linear attention, state spaces and short convolutions remember of all that they have read.

It has a fixed size, so presses leave it as it is. Models write into it, so every row has a copy of its own,
and a context's is never read directly. No token can be removed from it again: rows that are read together
must be of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kvcache.cache import CompressedLayer
from kvcache.modules import cache_keyword, cached_by_layers, decoder_of
from kvcache.storage import KVView

try:
    from transformers.cache_utils import LinearAttentionLayer
except ImportError:  # older versions have no such layers, and their hybrid models are refused
    LinearAttentionLayer = object

KINDS = ("conv_states", "recurrent_states")
"""The attributes of transformers' layers that hold states."""


@dataclass(frozen=True, eq=False)
class LayerState:
    """The state of one layer after a context was read, of a single row.

    Attributes:
        tensors: (1, *) by attribute and number.
        windows: tokens that each convolution sees, by number.
    """

    tensors: dict[tuple[str, int], Tensor]
    windows: dict[int, Any]

    @classmethod
    def of_row(cls, layer: Any, row: int = 0) -> Self | None:
        """A copy of what a row of a cache layer remembers; None for a layer without a state."""
        if not getattr(layer, "conv_states", None):
            return None
        tensors = {
            (kind, number): tensor[row : row + 1].clone()
            for kind in KINDS
            for number, tensor in getattr(layer, kind).items()
            if tensor is not None
        }
        return cls(tensors, dict(layer.conv_kernel_size))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class StateLayer(LinearAttentionLayer):
    """A cache layer of R rows that holds a state only."""

    is_compileable = False

    def __init__(self, states: Sequence[LayerState]) -> None:
        """Copies of the states of R rows."""
        first = states[0]
        super().__init__(number_of_states=len(first.windows))
        self.conv_kernel_size = dict(first.windows)
        for kind, number in first.tensors:
            joined = torch.cat([state.tensors[kind, number] for state in states])
            getattr(self, kind)[number] = joined
            getattr(self, f"is_{kind}_initialized")[number] = True
            self.has_previous_state[number] = True
            self.device, self.dtype = joined.device, joined.dtype

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """The window before (R, C, w), with new columns (R, C, n) behind it; the last w become the window.

        Assigned, not written in place as in transformers: gradients flow through it.
        """
        before: Tensor = self.conv_states[state_idx]
        columns = torch.cat((before, conv_states), dim=-1)
        self.conv_states[state_idx] = columns[..., -self.conv_kernel_size[state_idx] :].contiguous()
        return columns

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Take over the state (R, *) after new tokens; assigned, see `update_conv_state`."""
        new = recurrent_states.to(self.recurrent_states[state_idx].dtype)
        self.recurrent_states[state_idx] = new
        return new

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Nothing: rows of equal length have no padding to forget."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (rising indices)."""
        keep_rows_of_state(self, rows)

    def join(self, other: StateLayer) -> None:
        """Take over the rows of another layer, behind the own ones."""
        join_states(self, other)


class MixedLayer(CompressedLayer, StateLayer):
    """A cache layer of R rows with both: keys and values that grow, and a state (Falcon-H1)."""

    is_compileable = False
    is_croppable = False

    def __init__(self, states: Sequence[LayerState], *args: Any, **kwargs: Any) -> None:
        """Copies of the states of R rows; the rest as for a `CompressedLayer`."""
        StateLayer.__init__(self, states)
        CompressedLayer.__init__(self, *args, **kwargs)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """See `CompressedLayer.set_lengths`."""
        CompressedLayer.set_lengths(self, lengths)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (rising indices)."""
        keep_rows_of_state(self, rows)
        CompressedLayer.keep_rows(self, rows)

    def join(self, other: Any) -> None:
        """Take over the rows of another layer, behind the own ones."""
        join_states(self, other)
        CompressedLayer.join(self, other)


class EmptyLayer:
    """A cache layer of a decoder layer that caches nothing."""

    supports_early_init = False
    is_compileable = is_croppable = is_initialized = True
    is_sliding = False
    keys = values = None

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Nothing."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Nothing."""

    def join(self, other: EmptyLayer) -> None:
        """Nothing."""

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length


def keep_rows_of_state(layer: Any, rows: Sequence[int]) -> None:
    """Drop the states of all rows but these (rising indices)."""
    for held in (getattr(layer, kind) for kind in KINDS):
        for number, tensor in held.items():
            if tensor is not None:
                held[number] = tensor[torch.tensor(rows, device=tensor.device)]


def join_states(layer: Any, other: Any) -> None:
    """Put the states of another layer's rows behind those of `layer`."""
    for kind in KINDS:
        held, more = getattr(layer, kind), getattr(other, kind)
        for number, tensor in held.items():
            if tensor is not None:
                held[number] = torch.cat((tensor, more[number]))


def cache_layer(rows: Sequence[KVView], states: Sequence[LayerState | None], *args: Any) -> Any:
    """The cache layer of R rows that keep entries, have a state, both, or neither in it.

    Args:
        rows: what each keeps; `KVView.nothing` in a layer without keys and values.
        states: of each, None where the layer has none.
        args: next position, capacity and decode hooks of a `CompressedLayer`.
    """
    given = [state for state in states if state is not None]
    if rows[0].is_nothing:
        return StateLayer(given) if given else EmptyLayer()
    return MixedLayer(given, rows, *args) if given else CompressedLayer(rows, *args)


def compressed_in_place_of(layer: Any, rows: Sequence[KVView], next_position: int) -> Any:
    """What takes the place of a cache layer of transformers: compressed entries, and its state."""
    return cache_layer(rows, [LayerState.of_row(layer, row) for row in range(len(rows))], next_position)


def states_of(cache: Any) -> list[LayerState | None]:
    """Copies of the states in a cache of one row, per layer."""
    return [LayerState.of_row(layer) for layer in cache.layers]


@torch.no_grad()
def state_bytes_of(model: nn.Module) -> int:
    """Bytes of the states of one row in all layers: the model reads two tokens.

    A model on the meta device will do: it reads as far as its layers allow, and those that were not reached
    have states as large as the largest before.
    """
    layers = sum(cached.state for cached in cached_by_layers(model))
    if not layers:
        return 0
    decoder, config = decoder_of(model), model.config
    cache = DynamicCache(config=config.get_text_config())  # type: ignore[union-attr, operator]
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(decoder.parameters()).device)
    try:
        decoder(input_ids=ids, use_cache=True, **{cache_keyword(decoder): cache})
    except Exception:
        if not ids.is_meta:  # there, experts cannot be chosen
            raise
    return layers * max((state.bytes for state in states_of(cache) if state is not None), default=0)
