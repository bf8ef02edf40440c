"""Watching a prefill: after each layer's attention, what a press may look at."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kvcache.logits import cap_of, capped, sinks_of, softmax
from kvcache.projections import head_size, keys_before_rope, kv_heads, queries_before_rope, query_heads
from kvcache.rotary import Layout, Rotary, find_layout, read

Result = TypeVar("Result")

QUERY_BLOCK = 256
"""Queries per step where attention of all queries is summed, so that nothing of size T x T exists,"""

LOGITS = 2**26
"""fewer where they meet so many keys that there would be more logits than this at once."""


class Scorer(Protocol):
    """A press that scores entries: what `LayerObservation.score` needs of it."""

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) scores, higher is kept longer."""

    def identity(self) -> Hashable:
        """Equal for presses that score alike, whatever their budget."""


@dataclass
class Witness:
    """What the attention function was called with, where it is ours: the truth that recomputed queries are compared with.

    Attributes:
        queries: (B, H * G, n, d) of the last tokens, after rotary embedding.
        scaling: factor on the logits.
    """

    queries: Tensor | None = None
    scaling: float = 0.0


@dataclass(frozen=True)
class LayerObservation:
    """One layer in the moment after its attention read the whole context. Read only: nothing here may be modified.

    Attributes:
        index: of the layer in the model.
        module: the attention module.
        hidden: (B, T, D) input of the attention, after the layer's input norm.
        keys: (B, H, T, d) as cached, after rotary embedding.
        values: (B, H, T, d) as cached.
        cos: (B or 1, T, *) rotary factors of the context's positions, as the model computes them; see
            `rotary`.
        sin: like cos.
        rope: positions (n,) to (cos, sin), each (1, n, *), likewise, for this layer's kind of rotary
            embedding.
        fingerprints: per batch row, 32-bit content hash of the context's token ids, for seeded randomness.
        token_ids: (B, T) of the context; None where the model was given embeddings.
        question: number of tokens at the end of the context that are a question, where one is read with it.
        witness: what the attention function was called with, where that is known.
        whole: the observation of which this one is a part.
    """

    index: int
    module: nn.Module
    hidden: Tensor
    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    rope: Callable[[Tensor], tuple[Tensor, Tensor]]
    fingerprints: tuple[int, ...]
    token_ids: Tensor | None = None
    question: int = 0
    witness: Witness | None = field(default=None, repr=False, compare=False)
    whole: LayerObservation | None = field(default=None, repr=False, compare=False)
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Number T of context tokens."""
        return self.keys.shape[2]

    def generators(self, seed: int) -> list[torch.Generator]:
        """Per batch row, a random generator on the CPU of its own for this seed, layer and context."""
        # hashed: the generator looks at the lowest 32 bits of its seed only
        return [
            torch.Generator().manual_seed(zlib.crc32(f"{seed} {self.index} {row}".encode()))
            for row in self.fingerprints
        ]

    @property
    def kv_heads(self) -> int:
        """Number H of KV heads."""
        return kv_heads(self.module)

    @property
    def group(self) -> int:
        """Number G of query heads per KV head."""
        return query_heads(self.module) // kv_heads(self.module)

    @property
    def scale(self) -> float:
        """Factor on the attention logits, 1/sqrt(d) in most models."""
        if self.witness is not None and self.witness.queries is not None:
            return self.witness.scaling
        return float(getattr(self.module, "scaling", head_size(self.module) ** -0.5))

    def once(self, name: Hashable, compute: Callable[[], Result]) -> Result:
        """`compute()`, remembered for this layer under `name`, so that presses built on the same thing pay once."""
        if name not in self._memo:
            self._memo[name] = compute()
        result: Result = self._memo[name]
        return result

    def score(self, scorer: Scorer) -> Tensor:
        """(B, H, T) scores of `scorer`, computed once however many presses use it.

        Raises:
            ValueError: the scores do not have this shape, or contain NaN.
        """

        def compute() -> Tensor:
            scores = scorer.score(self)
            if scores.shape != self.keys.shape[:3]:
                raise ValueError(
                    f"{type(scorer).__name__}.score must return (B, H, T)={tuple(self.keys.shape[:3])}, got {tuple(scores.shape)}"
                )
            if scores.isnan().any():
                raise ValueError(f"{type(scorer).__name__}.score gave NaN in layer {self.index}")
            return scores

        return self.once(("score", scorer.identity()), compute)

    def queries_before_rope(self, last: int | None = None) -> Tensor:
        """(B, H * G, n, d) queries of the last n positions (all by default), before rotary embedding."""

        def compute() -> Tensor:
            self.layout()
            return queries_before_rope(self.module, self.hidden[:, -last:] if last else self.hidden)

        return self.once(("queries before rope", last or self.tokens), compute)

    def keys_before_rope(self) -> Tensor:
        """(B, H, T, d) keys before rotary embedding."""

        def compute() -> Tensor:
            self.layout()
            return keys_before_rope(self.module, self.hidden)

        return self.once("keys before rope", compute)

    def queries(self, last: int | None = None) -> Tensor:
        """(B, H * G, n, d) queries of the last n positions (all by default), as the attention used them."""
        n = min(last or self.tokens, self.tokens)

        def compute() -> Tensor:
            rotary = self.rotary
            return rotary.turn(
                self.queries_before_rope(n), *read(rotary.layout, self.cos[:, -n:], self.sin[:, -n:])
            )

        return self.once(("queries", n), compute)

    def window_attention(self, last: int) -> Tensor:
        """(B, H * G, n, T) causal attention of the last n = min(last, T) queries to all keys; softmax in float32, in the queries' dtype."""
        n = min(last, self.tokens)
        return self.once(("window attention", n), lambda: self._attention(self.queries(n), self.tokens - n))

    def attention_column_sums(self) -> Tensor:
        """(B, H * G, T) float32: attention that each position receives, summed over all queries, block by block."""

        def compute() -> Tensor:
            queries = self.queries()
            sums = queries.new_zeros(*queries.shape[:2], self.tokens, dtype=torch.float32)
            n = block_size(queries.shape[0] * queries.shape[1], self.tokens)
            for start in range(0, self.tokens, n):
                block = self._attention(queries[:, :, start : start + n], start)
                sums[..., : block.shape[-1]] += block.float().sum(2)
            return sums

        return self.once("attention column sums", compute)

    def _attention(self, queries: Tensor, start: int) -> Tensor:
        """(B, H * G, n, start + n): causal attention of queries at positions start, start + 1, … (B, H * G, n, d)."""
        n = queries.shape[2]
        logits = self.logits(queries.unflatten(1, (self.kv_heads, self.group)), self.keys[:, :, : start + n])
        future = torch.ones(n, n, dtype=torch.bool, device=logits.device).triu(1)
        logits[..., start:].masked_fill_(future, float("-inf"))
        return self.softmax(logits).to(queries.dtype).flatten(1, 2)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, H, G, n, K) attention logits of queries (B, H, G, n, d) and keys (B, H, K, d), as this attention scales and caps them."""
        products = queries.flatten(2, 3) @ keys.transpose(2, 3) * self.scale
        return capped(products, cap_of(self.module)).unflatten(2, queries.shape[2:4])

    def softmax(self, logits: Tensor) -> Tensor:
        """Float32 weights (B, H, G, n, K) of logits, less the share of the attention's sinks where it has some."""
        return softmax(logits, sinks_of(self.module))

    @property
    def rotary(self) -> Rotary:
        """How this layer turns queries and keys.

        Raises:
            ValueError: that cannot be found out.
        """
        return Rotary(self.rope, self.layout())

    def layout(self) -> Layout:
        """How rotary factors are read, found once per layer by recomputing the last keys; the last queries are checked as well.

        Raises:
            ValueError: recomputed keys or queries are not those of the model.
        """
        if self.whole is not None:
            return self.whole.layout()

        @torch.no_grad()
        def compute() -> Layout:
            n = min(2, self.hidden.shape[1])
            last = self.hidden[:, -n:]
            cos, sin = self.cos[:, -n:], self.sin[:, -n:]
            found = find_layout(keys_before_rope(self.module, last), self.keys[:, :, -n:], cos, sin)
            true = self.witness.queries if self.witness is not None else None
            if found is not None and true is not None and true.shape[2] >= n:
                again = Rotary(self.rope, found).turn(
                    queries_before_rope(self.module, last), *read(found, cos, sin)
                )
                if again.shape != true[:, :, -n:].shape or not _close(again, true[:, :, -n:]):
                    found = None
            if found is None:
                raise ValueError(
                    f"the queries or keys of {type(self.module).__name__} cannot be recomputed from its projections, so this press would "
                    "be silently wrong on this model; use one that scores keys and values as they are cached (knorm, keydiff, …)"
                )
            return found

        return self.once("layout", compute)


def _close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.float(), wanted.float(), rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def block_size(rows: int, length: int, most: int = QUERY_BLOCK) -> int:
    """Queries per step, where each of `rows` heads meets `length` keys: at most `most`, and at most `LOGITS` logits in all."""
    return max(1, min(most, LOGITS // (rows * max(1, length))))


def decoder_of(model: nn.Module) -> nn.Module:
    """The stack of decoder layers inside `model` (the text model of a multimodal one)."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    if not hasattr(decoder, "layers"):
        raise ValueError(
            f"{type(model).__name__} has no decoder with `layers`, which longpress needs; models as Llama or Qwen have one"
        )
    return decoder


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The self-attention module of every decoder layer, in order."""
    modules = [layer.self_attn for layer in decoder_of(model).layers if hasattr(layer, "self_attn")]  # type: ignore[union-attr]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no layer with `self_attn`, where longpress looks for a KV cache; use a model as Llama or Qwen"
        )
    return modules


def cache_keyword(module: nn.Module) -> str:
    """Name of the argument that carries the cache: `past_key_values`, since transformers 5.24 `cache`."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def window_of(module: nn.Module) -> int | None:
    """Tokens that a sliding-window attention sees, None for full attention."""
    if kind_of(module) not in (None, "sliding_attention"):  # EXAONE 4 names the window in all of its modules
        return None
    if hasattr(module, "sliding_window"):
        return module.sliding_window  # type: ignore[return-value]
    config: Any = module.config
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def kind_of(module: nn.Module) -> str | None:
    """The kind of an attention where a model has several: as "full_attention" or "sliding_attention"; else None."""
    config: Any = module.config
    kinds = getattr(config, "layer_types", None)
    return kinds[module.layer_idx] if kinds else None


def is_left_whole(model: nn.Module, module: nn.Module, tokens: int) -> bool:
    """Whether this layer is not compressed: a sliding-window layer already forgets, so presses leave it as it is.

    A model in which every layer has a window that covers the whole context behaves as one with full attention
    and is compressed as such.

    Raises:
        ValueError: every layer has a window shorter than the context, so nothing could be compressed.
    """
    window = window_of(module)
    if window is None:
        return False
    windows = [window_of(other) for other in attention_modules(model)]
    if None in windows:
        return True
    if window < tokens:
        raise ValueError(
            f"every layer of {type(model).__name__} attends within a sliding window of {window} tokens, fewer than the context's {tokens}: "
            "there is nothing left for a press to compress; use contexts within the window or a model with full-attention layers"
        )
    return False


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
        ValueError: a batch with padding (contexts of different lengths cannot share a prefill).
    """
    decoder = decoder_of(model)
    modules = attention_modules(model)
    prefill: dict[str, Any] = {}
    parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        prefill.clear()
        parts.clear()
        cache = _cache(kwargs)
        past = 0 if cache is None else cache.get_seq_length()
        inputs = args[0] if args else kwargs.get("input_ids")
        inputs = kwargs["inputs_embeds"] if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask.bool().all()):
            raise ValueError(
                "padded batches cannot be compressed together: give one context at a time, or contexts of equal length without padding"
            )
        if past == 0:
            rows = inputs.detach().cpu().float().numpy()
            fingerprints = tuple(zlib.crc32(row.tobytes()) for row in rows)
            prefill.update(
                tokens=inputs.shape[1], ids=inputs if inputs.dim() == 2 else None, fingerprints=fingerprints
            )

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = _cache(kwargs)
        if not prefill or cache is None:
            return
        prefill["cache"] = cache
        if is_left_whole(model, module, prefill["tokens"]):
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = rotary_factors(module, args, kwargs)
        index: int = module.layer_idx  # type: ignore[assignment]
        seen = parts.setdefault(index, [])
        seen.append((hidden, cos, sin))
        if sum(part[0].shape[1] for part in seen) < prefill["tokens"]:
            return
        hidden, cos, sin = (
            tensors[0] if len(seen) == 1 else torch.cat(tensors, 1)
            for tensors in zip(*parts.pop(index), strict=True)
        )
        stored, rope = cache.layers[index], rope_of(decoder, module, hidden)
        known = prefill["fingerprints"], prefill["ids"]
        with torch.no_grad():
            witness = kwargs.get("witness")
            if witness is not None and witness.queries is None:
                raise ValueError(
                    f"{type(module).__name__} does not call the attention function that longpress registers; it is not supported"
                )
            on_layer(
                LayerObservation(
                    index, module, hidden, stored.keys, stored.values, cos, sin, rope, *known, witness=witness
                ),
                cache,
            )

    def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if "cache" in prefill and on_end is not None:
            with torch.no_grad():
                on_end(prefill["cache"])
        prefill.clear()
        parts.clear()

    with ExitStack() as stack:
        hooks = [
            decoder.register_forward_pre_hook(begin, with_kwargs=True),
            decoder.register_forward_hook(end, with_kwargs=True),
        ]
        hooks += [module.register_forward_hook(watch, with_kwargs=True) for module in modules]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


def _cache(kwargs: dict[str, Any]) -> Any:
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def rotary_factors(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(cos, sin) that an attention module was called with.

    Raises:
        ValueError: it was not called with such a pair.
    """
    found = (
        kwargs["position_embeddings"]
        if "position_embeddings" in kwargs
        else args[1]
        if len(args) > 1
        else None
    )
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(
            f"{type(module).__name__} gets no cosines and sines of positions: longpress supports rotary embedding only"
        )
    return found


def rope_of(decoder: nn.Module, module: nn.Module, like: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The model's own rotary embedding for any positions; Gemma3 and OLMo3 keep one per kind of layer."""
    embedding: Any = decoder.rotary_emb
    kind = kind_of(module)
    per_kind = kind is not None and hasattr(embedding, f"{kind}_inv_freq")
    sample = like[:1, :1].clone()  # a view would keep all hidden states alive

    def rope(positions: Tensor) -> tuple[Tensor, Tensor]:
        at = positions[None].to(sample.device)  # layers may lie on other devices than the embedding
        cos, sin = embedding(sample, at, kind) if per_kind else embedding(sample, at)
        return cos.to(positions.device), sin.to(positions.device)

    return rope
