"""What a press may look at: one layer, in the moment after its attention read the context."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from kvcache.latent import seen
from kvcache.logits import cap_of, capped, sinks_of, softmax
from kvcache.projections import head_size, keys_before_rope, kv_heads, queries_before_rope, query_heads
from kvcache.rotary import Layout, Rotary, find_layout, read, rotary_factors

Result = TypeVar("Result")

QUERY_BLOCK = 256
"""Queries per step where the attention of all queries is summed, so that nothing of size T x T exists."""

LOGITS = 2**26
"""Most attention logits held at once in such a step: where they meet many keys, it has fewer queries."""


class Scorer(Protocol):
    """A press that scores entries: what `LayerObservation.score` needs of it."""

    def score(self, layer: LayerObservation) -> Tensor:
        """(B, H, T) scores, higher is kept longer."""

    def identity(self) -> Hashable:
        """Equal for presses that score alike, whatever their budget."""


@dataclass
class AttentionProbe:
    """What the attention function was called with, where it is ours.

    It is the truth that recomputed queries are compared with.

    Attributes:
        queries: (B, H * G, n, d) of the last tokens, after rotary embedding.
        scaling: factor on the logits.
    """

    queries: Tensor | None = None
    scaling: float = 0.0


class AttentionInputs(NamedTuple):
    """What an attention module was called with.

    Attributes:
        hidden: (B, n, D) hidden states of n tokens, after the layer's input norm.
        cos: (B or 1, n, *) rotary factors of their positions.
        sin: like cos.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of_call(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """From the arguments that a forward hook is given.

        Raises:
            ValueError: the module gets no rotary factors.
        """
        return cls(args[0] if args else kwargs["hidden_states"], *rotary_factors(module, args, kwargs))

    @classmethod
    def joined(cls, parts: Sequence[AttentionInputs]) -> Self:
        """Those of several calls, one behind the other."""
        if len(parts) == 1:
            return cls(*parts[0])
        return cls(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))


@dataclass(frozen=True)
class LayerObservation:
    """One layer in the moment after its attention read the whole context.

    Read only: nothing of it may be modified.

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
        attention_probe: what the attention function was called with, where that is known.
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
    attention_probe: AttentionProbe | None = field(default=None, repr=False, compare=False)
    whole: LayerObservation | None = field(default=None, repr=False, compare=False)
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        module: nn.Module,
        inputs: AttentionInputs,
        keys: Tensor,
        values: Tensor,
        rope: Callable[[Tensor], tuple[Tensor, Tensor]],
        **known: Any,
    ) -> Self:
        """The observation of a layer: the only place where one is made, be it in a prefill or while decoding.

        Args:
            module: the attention module.
            inputs: what it was called with, of all tokens that are looked at.
            keys: (B, H, T, d) as cached.
            values: (B, H, T, d) as cached; of latent attention, as transformers caches them or as they are
                stored.
            rope: the layer's rotary embedding, see the attribute.
            known: other attributes, as far as they are known; `fingerprints` must be.
        """
        index: Any = module.layer_idx
        keys, values = seen(module, keys, values)
        return cls(index, module, inputs.hidden, keys, values, inputs.cos, inputs.sin, rope, **known)

    @property
    def tokens(self) -> int:
        """Number T of context tokens."""
        return self.keys.shape[2]

    def generators(self, seed: int) -> list[torch.Generator]:
        """Per batch row, a random generator on the CPU of its own for this seed, layer and context."""
        # Hashed, since a generator looks at the lowest 32 bits of its seed only.
        seeds = [zlib.crc32(f"{seed} {self.index} {row}".encode()) for row in self.fingerprints]
        return [torch.Generator().manual_seed(hashed) for hashed in seeds]

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
        if self.attention_probe is not None and self.attention_probe.queries is not None:
            return self.attention_probe.scaling
        return float(getattr(self.module, "scaling", head_size(self.module) ** -0.5))

    def once(self, name: Hashable, compute: Callable[[], Result]) -> Result:
        """`compute()`, remembered for this layer under `name`.

        So presses that are built on the same thing pay once.
        """
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
                    f"{type(scorer).__name__}.score must return (B, H, T)={tuple(self.keys.shape[:3])}, got "
                    f"{tuple(scores.shape)}"
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
            factors = read(rotary.layout, self.cos[:, -n:], self.sin[:, -n:])
            return rotary.turn(self.queries_before_rope(n), *factors)

        return self.once(("queries", n), compute)

    def window_attention(self, last: int) -> Tensor:
        """(B, H * G, n, T) causal attention of the last n = min(last, T) queries to all keys.

        The softmax is taken in float32, the result is in the queries' dtype.
        """
        n = min(last, self.tokens)
        return self.once(("window attention", n), lambda: self._attention(self.queries(n), self.tokens - n))

    def attention_column_sums(self) -> Tensor:
        """(B, H * G, T) float32: attention that each position receives, summed over all queries.

        Computed block by block of queries.
        """

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
        """(B, H * G, n, start + n): causal attention of queries (B, H * G, n, d) from position `start` on."""
        n = queries.shape[2]
        logits = self.logits(queries.unflatten(1, (self.kv_heads, self.group)), self.keys[:, :, : start + n])
        future = torch.ones(n, n, dtype=torch.bool, device=logits.device).triu(1)
        logits[..., start:].masked_fill_(future, float("-inf"))
        return self.softmax(logits).to(queries.dtype).flatten(1, 2)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, H, G, n, K) attention logits, as this attention scales and caps them.

        Args:
            queries: (B, H, G, n, d).
            keys: (B, H, K, d).
        """
        products = queries.flatten(2, 3) @ keys.transpose(2, 3) * self.scale
        return capped(products, cap_of(self.module)).unflatten(2, queries.shape[2:4])

    def softmax(self, logits: Tensor) -> Tensor:
        """Float32 weights (B, H, G, n, K) of logits, less the share that sinks take."""
        return softmax(logits, sinks_of(self.module))

    @property
    def rotary(self) -> Rotary:
        """How this layer turns queries and keys.

        Raises:
            ValueError: that cannot be found out.
        """
        return Rotary(self.rope, self.layout())

    def layout(self) -> Layout:
        """How rotary factors are read, found once per layer.

        It is found by recomputing the last keys; the last queries are checked as well.

        Raises:
            ValueError: recomputed keys or queries are not those of the model.
        """
        if self.whole is not None:
            return self.whole.layout()

        @torch.no_grad()
        def compute() -> Layout:
            n = min(2, self.hidden.shape[1])
            hidden, cos, sin = self.hidden[:, -n:], self.cos[:, -n:], self.sin[:, -n:]
            layout = find_layout(keys_before_rope(self.module, hidden), self.keys[:, :, -n:], cos, sin)
            if layout is None or not self._turns_queries(layout, hidden, cos, sin):
                raise ValueError(
                    f"the queries or keys of {type(self.module).__name__} cannot be recomputed from its "
                    "projections, so this press would be silently wrong on this model; use one that scores "
                    "keys and values as they are cached (knorm, keydiff, …)"
                )
            return layout

        return self.once("layout", compute)

    def _turns_queries(self, layout: Layout, hidden: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether queries recomputed from the last hidden states are those that the attention has used.

        True where these are not known.
        """
        n = hidden.shape[1]
        true = None if self.attention_probe is None else self.attention_probe.queries
        if true is None or true.shape[2] < n:
            return True
        true = true[:, :, -n:].float()
        before_rope = queries_before_rope(self.module, hidden)
        queries = Rotary(self.rope, layout).turn(before_rope, *read(layout, cos, sin)).float()
        if queries.shape != true.shape:
            return False
        return torch.allclose(queries, true, rtol=2e-2, atol=2e-2 * float(true.abs().max()))


def block_size(rows: int, length: int, most: int = QUERY_BLOCK) -> int:
    """Queries per step, where each of `rows` heads meets `length` keys.

    At most `most`, and at most `LOGITS` logits in all.
    """
    return max(1, min(most, LOGITS // (rows * max(1, length))))
