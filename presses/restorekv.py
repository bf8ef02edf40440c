"""RestoreKV: a few learned tokens read the whole context before it is evicted, and their entries stay.

Scores are those of KVzip (KVzip+ with `kvzip_plus_normalization`). n learned embeddings pass the model once
at the positions after the context, on top of its full cache and with a trained low-rank adapter; their keys
and values are kept in all layers and heads, and that much more of the context goes, so that the budget is
met: the lowest of all layers and heads together, at ratio r + n/T.
Source: RestoreKV, arXiv 2608.01247; weights of the authors on the hub, `higokri/RestoreKV-<model>`, with
`_plus` for KVzip+.
Differs: as KVzip. Of a budget of fewer entries than learned tokens per head, only the first of these are kept
(kvpress exceeds the budget). The model is not changed: the adapter is added to its projections for that one
pass. The question continues at position T + n. Models in which some layers have sliding windows are refused
(kvpress refuses Gemma). Embeddings and adapter of other models have to be trained by gradient descent, with
the authors' code.
Cost: as KVzip, and one pass of n tokens, once for all ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.hooks.replay import replay
from kvcache.linear import device_of
from kvcache.modules import attention_modules, has_state
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, gather
from kvcache.traits import Traits
from presses.kvzip import KVzipPress
from presses.support.budgets import highest_together, kept_together
from presses.support.lora import Adapter, adapted, read_adapter
from presses.support.weights import last_part, model_name, read


class LearnedTokens(NamedTuple):
    """Tokens that were learned for a model.

    Attributes:
        embeddings: (n, D).
        source: where they come from.
        description: of them, for error messages.
    """

    embeddings: Tensor
    source: str | None
    description: str


class Evidence(NamedTuple):
    """What is known of a layer.

    Attributes:
        scores: (B, H, T) of the context's entries.
        keys: (B, H, n, d) of the learned tokens.
        values: (B, H, n, d) of the learned tokens.
    """

    scores: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RestoredSelection(Selection):
    """A selection (B, H, T + n) among the context's entries and those of the learned tokens.

    Attributes:
        keys: (B, H, n, d) of the learned tokens.
        values: (B, H, n, d).
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class RestoreKVPress(KVzipPress):
    """KVzip, with learned tokens that make up for what is lost.

    Attributes:
        weights: local folder or hub id with `restore_embeddings.safetensors` and the adapter; None for what
            is published for the model.
        revision: of the hub repository.
    """

    weights: str | None = None
    revision: str = "main"

    @property
    def traits(self) -> Traits:
        """The model reads the context again, and what learned tokens read of it joins the cache."""
        return replace(super().traits, adds_entries=True, only_selects=False)

    def observe(self, layer: LayerObservation) -> None:
        """Nothing yet; but a model without weights is refused in its first layer, not after the prefill."""
        self._embeddings(layer.module, layer.hidden.shape[-1])

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> list[Evidence]:  # type: ignore[override]
        """Per layer the scores of the context, and the entries of the learned tokens.

        Raises:
            ValueError: no weights; or some layers, with sliding windows or a state, are left whole.
        """
        if has_state(prefill.model):
            raise ValueError(
                f"{self.name} puts tokens of its own behind the context, which this model's layers with a "
                "state of fixed size, left as they are, have not read"
            )
        if not prefill.observes_all_layers:
            raise ValueError(
                f"{self.name} puts tokens of its own behind the context, which sliding-window layers, left "
                "whole, cannot follow"
            )
        scores = super().probe(prefill, evidence)
        learned: dict[int, tuple[Tensor, Tensor]] = {}

        def collect(layer: LayerObservation) -> None:
            learned[layer.index] = layer.keys, layer.values

        with torch.no_grad():
            embeddings, adapter = self._learned(prefill)
            with adapted(prefill.model, adapter):
                replay(prefill, embeddings.expand(scores[0].shape[0], -1, -1), collect)
        return [
            Evidence(of_layer, *learned[index])
            for index, of_layer in zip(prefill.layers, scores, strict=True)
        ]

    def _learned(self, prefill: Prefill) -> tuple[Tensor, Adapter]:
        """Embeddings (1, n, D) of the learned tokens, and the adapter.

        Raises:
            ValueError: there are none, or they are another model's.
        """
        table: Any = prefill.model.get_input_embeddings()  # type: ignore[operator]
        first = table(torch.zeros(1, 1, dtype=torch.long, device=device_of(table)))  # (1, 1, D)
        module = attention_modules(prefill.model)[0]
        embeddings, source, description = self._embeddings(module, first.shape[-1])
        return embeddings.to(first)[None], read_adapter(source, self.revision, description)

    def _embeddings(self, module: nn.Module, size: int) -> LearnedTokens:
        """The learned tokens for the model of an attention module, whose hidden size is `size`."""
        name = model_name(module)
        suffix = "_plus" if self.kvzip_plus_normalization else ""
        source = self.weights or (f"higokri/RestoreKV-{last_part(name)}{suffix}" if name else None)
        description = f"restore tokens of {name or 'a model without a name'}"
        tensors = read(source, "restore_embeddings.safetensors", self.revision, description)
        embeddings = tensors.get("restore_embeddings") if isinstance(tensors, dict) else None
        if embeddings is None or embeddings.dim() != 2 or embeddings.shape[1] != size:
            got = None if embeddings is None else tuple(embeddings.shape)
            raise ValueError(
                f"restore_embeddings of {description} must have the shape (tokens, {size}), got {got}; these "
                "are another model's"
            )
        return LearnedTokens(embeddings, source, description)

    def select(self, evidence: Sequence[Evidence], budget: Budget) -> list[Selection]:  # type: ignore[override]
        """The learned tokens, and the highest scores of all layers and heads."""
        batch, heads, tokens = evidence[0].scores.shape
        learned = evidence[0].keys.shape[2]

        # How much of the budget is the learned tokens', the same in every head, and how much the context's.
        total = kept_together(len(evidence), heads, tokens, budget, by_layer=self.layerwise)
        n = min(learned, total // (len(evidence) * heads))
        of_context = total - n * len(evidence) * heads

        scores = [of_layer.scores for of_layer in evidence]
        selections = highest_together(scores, of_context, by_layer=self.layerwise)
        keep_learned = (torch.arange(learned, device=evidence[0].keys.device) < n).expand(batch, heads, -1)
        return [
            RestoredSelection(
                torch.cat((selection.keep, keep_learned), dim=-1), of_layer.keys, of_layer.values
            )
            for selection, of_layer in zip(selections, evidence, strict=True)
        ]

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept entries of the context, and behind them the learned tokens'."""
        assert isinstance(selection, RestoredSelection)
        all_keys = torch.cat((keys, selection.keys), dim=2)
        all_values = torch.cat((values, selection.values), dim=2)
        return gather(all_keys, selection.positions), gather(all_values, selection.positions)
