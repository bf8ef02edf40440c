"""Letting the model read more on top of a cached context, without a trace.

The full cache stays as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from kvcache.attention import attending
from kvcache.hooks.prefill import Prefill
from kvcache.layer_state import EmptyLayer, LayerState, StateLayer
from kvcache.linear import checking_gradients
from kvcache.modules import attention_module, cache_keyword, decoder_of
from kvcache.observation import AttentionInputs, LayerObservation
from kvcache.rope_frequencies import rope_lengths_of
from kvcache.rotary import rope_of

LARGEST = 1e20
"""Gradient norms are cut here, where float16 overflows in the backward pass."""

PIECE = 4096
"""Tokens of a replay that are read in one forward pass, so that activations do not grow with its length.

The result does not depend on it.
"""


class ReplayLayer(CacheLayerMixin):  # type: ignore[misc]
    """A full layer, read only, with the tokens of a replay behind it.

    Attributes:
        context: the full layer.
        own_keys: (B, H, n, d) of the tokens replayed so far.
        own_values: (B, H, n, d).
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, context: Any, start: int) -> None:
        """On top of a full layer; `start` is the position of the first replayed token."""
        self.context, self.start = context, start
        self.keys, self.values = context.keys, context.values
        self.own_keys, self.own_values = context.keys[:, :, :0], context.values[:, :, :0]
        self.device, self.dtype = context.keys.device, context.keys.dtype
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Context and replayed tokens together, in new tensors."""
        self.own_keys = torch.cat((self.own_keys, key_states), dim=2)
        self.own_values = torch.cat((self.own_values, value_states), dim=2)
        return torch.cat((self.keys, self.own_keys), dim=2), torch.cat((self.values, self.own_values), dim=2)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the layer is made whole."""

    def get_seq_length(self) -> int:
        """Position at which the next token continues."""
        return self.start + int(self.own_keys.shape[2])

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """(entries that a mask must span, offset of the first)."""
        n = query_length if isinstance(query_length, int) else query_length.shape[0]
        held = int(self.keys.shape[2])
        return held + int(self.own_keys.shape[2]) + n, self.start - held

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length


class MixedReplayLayer(ReplayLayer, StateLayer):
    """A full layer, read only, and a copy of the state beside it."""

    def __init__(self, context: Any, start: int, state: LayerState) -> None:
        """On top of a full layer; `start` is the position of the first replayed token."""
        StateLayer.__init__(self, [state])
        ReplayLayer.__init__(self, context, start)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the layer is made whole."""


def _on_top_of(layer: Any, start: int) -> Any:
    """A cache layer that reads a full one and copies of its state, and leaves both as they are."""
    state, has_entries = LayerState.of_row(layer), isinstance(layer, CacheLayerMixin)
    if state is None:
        return ReplayLayer(layer, start) if has_entries else EmptyLayer()
    return MixedReplayLayer(layer, start, state) if has_entries else StateLayer([state])


def replay(prefill: Prefill, token_ids: Tensor, on_layer: Callable[[LayerObservation], None]) -> None:
    """Let the model read on after the context of `prefill`.

    Args:
        prefill: a finished one.
        token_ids: (B, n) what continues the context, or its embeddings (B, n, D).
        on_layer: called after the attention of every observed layer, once per piece of the replay (of `PIECE`
            tokens, or less). Its observation is of the replay: hidden states, queries and rotary factors of
            the tokens that the layer has just read, keys and values of all replayed so far. The context's
            entries are `prefill.entries(observation.index)`.
    """
    with torch.no_grad():
        _run(prefill, token_ids, lambda observation, _: on_layer(observation))


def sensitivity(
    prefill: Prefill, token_ids: Tensor, on_layer: Callable[[LayerObservation], None]
) -> dict[int, Tensor]:
    """`replay`, and how much the last layer's output depends on what each attention adds.

    Returns:
        Per observed layer (B, n): ‖∂Φ/∂a_i‖₂ for the attention's output a_i at each replayed token, Φ = Σ_i
        ‖h_i‖² over the outputs h_i of the last decoder layer, before the final norm.
    """
    attention_outputs: dict[int, list[Tensor]] = {}  # per layer, piece by piece
    final_outputs: list[Tensor] = []

    def on_attention(observation: LayerObservation, output: Tensor) -> None:
        output.retain_grad()
        attention_outputs.setdefault(observation.index, []).append(output)
        with torch.no_grad():
            on_layer(observation)

    def on_last_layer(module: nn.Module, args: Any, output: Any) -> None:
        final_outputs.append(output[0] if isinstance(output, tuple) else output)

    # One forward and one backward pass, from Φ to what each attention has added.
    decoder: Any = decoder_of(prefill.model)
    grads = checking_gradients(decoder.layers)
    with torch.inference_mode(False), torch.enable_grad(), _frozen(prefill.model), grads:
        hook = decoder.layers[-1].register_forward_hook(on_last_layer)
        try:
            _run(prefill, token_ids.clone(), on_attention, with_gradient=True)
        finally:
            hook.remove()
        phi = torch.stack([piece.float().square().sum() for piece in final_outputs]).sum()
        phi.backward()  # type: ignore[no-untyped-call]
    return {index: _gradient_norms(pieces) for index, pieces in attention_outputs.items()}


def _gradient_norms(pieces: Sequence[Tensor]) -> Tensor:
    """(B, n) norms of the gradients of outputs (B, *, D), piece by piece; 0 where there is no gradient."""
    gradients = [torch.zeros_like(piece) if piece.grad is None else piece.grad for piece in pieces]
    norms = torch.cat(gradients, dim=1).float().norm(dim=-1)
    return norms.nan_to_num(nan=0.0, posinf=LARGEST).clamp(max=LARGEST)


def _run(
    prefill: Prefill,
    token_ids: Tensor,
    on_layer: Callable[[LayerObservation, Tensor], None],
    with_gradient: bool = False,
) -> None:
    """Read `token_ids`, or embeddings, piece by piece.

    `on_layer` is told of the observation and the output of each attention.
    """
    decoder = decoder_of(prefill.model)
    ids = token_ids if token_ids.dim() == 2 else None

    # A cache on top of the full one, which stays as it is.
    start = prefill.cache.get_seq_length()
    layers = [_on_top_of(layer, start) for layer in prefill.cache.layers]
    cache: Any = Cache(layers=layers)
    cache.rope_lengths = rope_lengths_of(prefill.cache)

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        index: Any = module.layer_idx
        inputs = AttentionInputs(*(part.detach() for part in AttentionInputs.of_call(module, args, kwargs)))
        keys, values = layers[index].own_keys.detach(), layers[index].own_values.detach()
        rope = rope_of(decoder, module, inputs.hidden, rope_lengths=cache.rope_lengths)
        observation = LayerObservation.build(
            module, inputs, keys, values, rope, fingerprints=(), token_ids=ids
        )
        on_layer(observation, output[0])

    with ExitStack() as stack:
        stack.enter_context(attending(prefill.model))
        for index in prefill.layers:
            stack.callback(
                attention_module(prefill.model, index).register_forward_hook(watch, with_kwargs=True).remove
            )
        if with_gradient:  # parameters are frozen, so the graph begins at the embeddings
            embedding: Any = prefill.model.get_input_embeddings()  # type: ignore[operator]
            stack.callback(embedding.register_forward_hook(_asking_for_gradients).remove)
        for piece in token_ids.split(PIECE, dim=1):
            inputs: dict[str, Any] = {"input_ids": piece} if piece.dim() == 2 else {"inputs_embeds": piece}
            positions = torch.arange(piece.shape[1], device=piece.device)[None] + cache.get_seq_length()
            decoder(**inputs, position_ids=positions, use_cache=True, **{cache_keyword(decoder): cache})


def _asking_for_gradients(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for gradients."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
