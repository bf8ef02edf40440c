"""Watching a prefill, layer by layer; and the prefill in exact chunks."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvcache.latent import fuse, is_latent, seen, stored
from kvcache.modules import (
    attention_module,
    attention_modules,
    decoder_of,
    is_left_whole,
    readers_of_other_layers,
)
from kvcache.observation import AttentionInputs, LayerObservation
from kvcache.rope_frequencies import cache_of, frequencies_by_row, rope_lengths_of
from kvcache.rotary import rope_of


@dataclass(frozen=True)
class PromptTokens:
    """The prompt around a context, in token ids, for presses that let the model read more on top of it.

    Attributes:
        before: number of tokens in front of the context's own.
        after: ids between what a user says and the model's answer.
        encode: ids of a text.
        question: number of tokens at the end of what is read that are a question; 0 where contexts are read
            without one.
    """

    before: int
    after: Sequence[int]
    encode: Callable[[str], Sequence[int]]
    question: int = 0


@dataclass
class Prefill:
    """One forward pass over a context while a press looks on.

    Attributes:
        model: that reads the context.
        cache: the transformers cache being filled.
        layers: index in the model of each layer observed so far.
        evidence: what the press observed in each of them.
        token_ids: (B, T) of the context, None where the model was given embeddings.
        prompt_tokens: the prompt around the context, where it is known.
    """

    model: nn.Module
    cache: Any = None
    layers: list[int] = field(default_factory=list)
    evidence: list[Any] = field(default_factory=list)
    token_ids: Tensor | None = None
    prompt_tokens: PromptTokens | None = None

    def collect(self, layer: LayerObservation, evidence: Any) -> None:
        """Remember what was observed in a layer, for when all layers are known."""
        self.layers.append(layer.index)
        self.evidence.append(evidence)

    def entries(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, d) of a layer in the full cache, as presses see them."""
        return seen(attention_module(self.model, index), *stored(self.cache.layers[index]))

    @property
    def observes_all_layers(self) -> bool:
        """Whether no keys and values are left whole, as those of layers with sliding windows are."""
        return len(self.layers) == len(attention_modules(self.model))


class _Started(NamedTuple):
    """A prefill that has begun: its length T, its ids where it has some, and a content hash of each row."""

    tokens: int
    token_ids: Tensor | None
    fingerprints: tuple[int, ...]

    @classmethod
    def of(cls, inputs: Tensor) -> _Started:
        """Of the ids (B, T) or embeddings (B, T, D) that the model is given."""
        rows = inputs.detach().cpu().float().numpy()
        hashes = tuple(zlib.crc32(row.tobytes()) for row in rows)
        return cls(inputs.shape[1], inputs if inputs.dim() == 2 else None, hashes)


@contextmanager
def observing(
    model: nn.Module,
    on_layer: Callable[[LayerObservation, Any], None],
    on_end: Callable[[Any], None] | None = None,
) -> Iterator[None]:
    """Inside, every prefill (a forward pass on an empty cache) is watched; decoding steps call nothing.

    `on_layer(observation, cache)` is called after each compressible layer's attention, `on_end(cache)` after
    the pass. Hidden states are kept for one layer at a time.

    Raises:
        ValueError: a batch with padding (contexts of different lengths cannot share a prefill; see
            `padded_batches`).
    """
    decoder = decoder_of(model)
    modules = attention_modules(model)
    started: list[_Started] = []  # of the pass at work: one, or none where it is no prefill
    used: list[Any] = []  # the cache that it fills
    parts: dict[int, list[AttentionInputs]] = {}  # of layers that read the context in chunks

    def forget() -> None:
        started.clear()
        used.clear()
        parts.clear()

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forget()
        cache = cache_of(kwargs)
        inputs = args[0] if args else kwargs.get("input_ids")
        inputs = kwargs["inputs_embeds"] if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.bool().all()):
            raise ValueError(
                "a padded batch can be read inside `with press(model)` only, in one pass on an empty cache; "
                "give one context at a time, or contexts of equal length without padding"
            )
        if cache is None or cache.get_seq_length() == 0:
            started.append(_Started.of(inputs))

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = cache_of(kwargs)
        if not started or cache is None:
            return
        (prefill,) = started
        used[:] = [cache]
        if is_left_whole(model, module, prefill.tokens):
            return

        # Wait until the layer has read all chunks of the context.
        index: Any = module.layer_idx
        read = parts.setdefault(index, [])
        read.append(AttentionInputs.of_call(module, args, kwargs))
        if sum(part.hidden.shape[1] for part in read) < prefill.tokens:
            return
        inputs = AttentionInputs.joined(parts.pop(index))

        # Show the layer as a whole.
        probe = kwargs.get("attention_probe")
        if probe is not None and probe.queries is None:
            raise ValueError(
                f"{type(module).__name__} does not call the attention function that longpress registers; it "
                "is not supported"
            )
        cached = cache.layers[index]
        if is_latent(module):
            fuse(cached, module)
        with torch.no_grad():
            observation = LayerObservation.build(
                module,
                inputs,
                *stored(cached),
                rope_of(decoder, module, inputs.hidden, rope_lengths=rope_lengths_of(cache)),
                fingerprints=prefill.fingerprints,
                token_ids=prefill.token_ids,
                attention_probe=probe,
            )
            on_layer(observation, cache)

    def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if used and on_end is not None:
            with torch.no_grad():
                on_end(used[0])
        forget()

    with ExitStack() as stack:
        stack.enter_context(frequencies_by_row(model))
        hooks = [
            decoder.register_forward_pre_hook(begin, with_kwargs=True),
            decoder.register_forward_hook(end, with_kwargs=True),
        ]
        hooks += [module.register_forward_hook(watch, with_kwargs=True) for module in modules]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def chunking(model: nn.Module, size: int | None) -> Iterator[None]:
    """Inside, a prefill runs layer by layer in chunks of `size` tokens. Exact.

    So activations do not grow with the context. Every layer reads all chunks before the next one begins, so a
    press still sees a layer's hidden states whole, and they still die with the layer. Layers that share keys
    and values read the context in one piece: a sliding window does not hold those of earlier chunks. To be
    used inside `attending(model)`, where transformers builds no mask. `None` changes nothing.

    Raises:
        ValueError: `size` is not positive.
    """
    if size is None:
        yield
        return
    if size < 1:
        raise ValueError(
            f"prefill_chunk={size} must be a positive number of tokens, or null to read the context in one "
            "piece"
        )
    waiting: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def first_chunk(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        positional = inspect.signature(layer.forward).bind_partial(*args).arguments if args else {}
        options = {**positional, **kwargs}
        hidden = options.pop("hidden_states")  # (B, T, D), or (*, B, T, D) in Gemma 3n
        tokens = hidden.shape[-2]
        if tokens <= size:
            return None
        waiting[id(layer)] = (hidden, options)
        return (hidden[..., :size, :],), _slice(options, 0, size, tokens)

    def other_chunks(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if id(layer) not in waiting:
            return None
        hidden, options = waiting.pop(id(layer))
        tokens = hidden.shape[-2]
        parts = [_hidden(output)]
        for start in range(size, tokens, size):
            stop = min(start + size, tokens)
            chunk = layer.forward(hidden[..., start:stop, :], **_slice(options, start, stop, tokens))
            parts.append(_hidden(chunk))
        whole = torch.cat(parts, dim=-2)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    readers = readers_of_other_layers(model)
    in_one_piece = {*readers.values(), *(module.layer_idx for module in readers)}
    layers: Any = decoder_of(model).layers
    with ExitStack() as stack:
        for layer in (layer for index, layer in enumerate(layers) if index not in in_one_piece):
            stack.callback(layer.register_forward_pre_hook(first_chunk, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(other_chunks, with_kwargs=True).remove)
        yield


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _slice(arguments: dict[str, Any], start: int, stop: int, tokens: int) -> dict[str, Any]:
    """The arguments of a decoder layer, cut to positions start:stop.

    Cut is whatever has the length of the context, `tokens`, in its token dimension.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dim() == 1 and value.shape[0] == tokens:
                return value[start:stop]
            return value[:, start:stop] if value.dim() >= 2 and value.shape[1] == tokens else value
        return tuple(cut(part) for part in value) if isinstance(value, tuple) else value

    return {name: cut(value) for name, value in arguments.items()}
