"""A press written for kvpress, run unchanged.

Any object with its interface will do; kvpress itself need not be installed. Its `score` is asked once per
layer where nothing else decides and it does not look at the ratio; otherwise its own hook runs for every
ratio on a copy of the layer's cache, so hidden states of all layers are held until then. Head-wise presses
that only note the entries to be masked (`module.masked_key_indices`) lose these entries for good. Presses
whose work is done elsewhere, in `__call__` around the model or while decoding, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.hooks.prefill import Prefill
from kvcache.observation import LayerObservation
from kvcache.selection import Selection
from kvcache.traits import Traits
from presses.base import BasePress


@dataclass(frozen=True)
class ForeignSelection(Selection):
    """A selection by a foreign press, with the entries that it left of a layer.

    Attributes:
        keys: (B, H, K, d), behind a head's own count anything.
        values: like keys.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class FromKVPress(BasePress):
    """Runs a foreign press: `FromKVPress(kvpress.SnapKVPress(window_size=32))`.

    A subclass with a method `make`, in a file of `presses_dir`, gives it a name on the command line.

    Attributes:
        press: an object with kvpress's interface: `score`, `compress` or `forward_hook`, with the arguments
            they have there.
        compression_ratio: fraction of entries removed, in [0, 1).
        attentions: whether the press needs the attention of all queries (B, H * G, T, T), as observed
            attention does.
    """

    press: Any = None
    compression_ratio: float = 0.0
    attentions: bool = False

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1), and what is not such a press."""
        super().__post_init__()
        if self.press is None:
            object.__setattr__(self, "press", self.make())
        kind = type(self.press).__name__
        if not any(callable(getattr(self.press, verb, None)) for verb in ("score", "compress")):
            raise ValueError(f"{kind} has neither score nor compress: give a press with kvpress's interface")
        classes = [each for each in type(self.press).__mro__ if each.__name__ != "BasePress"]
        if any("__call__" in vars(each) for each in classes):
            raise ValueError(
                f"{kind} does its work around the model (it has a __call__ of its own), which a shared "
                "prefill cannot run"
            )

    def make(self) -> Any:
        """The press to run, for subclasses: then the file's name is the press's."""
        raise ValueError("give the press to run: FromKVPress(press=…), or a subclass with make()")

    @property
    def traits(self) -> Traits:
        """Nothing is known of what the press does; one that does more than score keeps the whole layer."""
        return Traits(only_selects=False, keeps_hidden_states=not self._only_scores)

    @property
    def _only_scores(self) -> bool:
        """Whether the press adds nothing to a score."""
        has = callable(getattr(self.press, "score", None))
        return has and all(
            not hasattr(self.press, verb) or _defined(self.press, verb, owner)
            for verb, owner in (
                ("compress", "ScorerPress"),
                ("forward_hook", "BasePress"),
                ("post_init_from_model", "BasePress"),
            )
        )

    def observe(self, layer: LayerObservation) -> LayerObservation | Tensor:
        """The scores (B, H, T) where they are all there is and the ratio is not looked at; else the layer."""
        if not self._only_scores:
            return layer
        watched, read = _watching_ratio(self.press)
        with self._kvpress_call(layer) as (_, kwargs, attention):
            states = layer.hidden, layer.keys, layer.values
            scores: Tensor = watched.score(layer.module, *states, attention, kwargs)
        if scores.shape != layer.keys.shape[:3]:
            raise ValueError(
                f"{self._title}.score must return (B, H, T)={tuple(layer.keys.shape[:3])}, got "
                f"{tuple(scores.shape)}"
            )
        return layer if read else scores

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> Sequence[Any]:
        """Let the press look at the model first, as it would on entering."""
        if hasattr(self.press, "post_init_from_model"):
            self.press.post_init_from_model(prefill.model)
        return evidence

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """The top `budget.entries(T)` of scores; or what the press's own hook leaves."""
        return [
            Selection.top(of_layer, budget.entries(of_layer.shape[-1]))
            if isinstance(of_layer, Tensor)
            else self._run(of_layer, budget)
            for of_layer in evidence
        ]

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """What the press left, or the entries of highest score."""
        if isinstance(selection, ForeignSelection):
            return selection.keys, selection.values
        return super().apply(keys, values, selection)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """The budget where scores decide; else whatever the press does, which is measured."""
        if self._only_scores:
            return super().entry_bounds(layers, heads, tokens, budget)
        return 0, layers * heads * tokens

    def parameters(self) -> dict[str, Any]:
        """Class and fields of the press, without its ratio."""
        return _described(self.press)

    def identity(self) -> Hashable:
        """Equal for presses of one class and equal fields, whatever their ratio."""
        return type(self), type(self.press), json.dumps(self.parameters(), sort_keys=True), self.attentions

    @property
    def _title(self) -> str:
        return type(self.press).__name__

    def _run(self, layer: LayerObservation, budget: Budget) -> Selection:
        """Let a copy of the press work on a copy of the layer's cache."""
        press, ratio = deepcopy(self.press), ratio_of(budget, layer.tokens)
        try:
            press.compression_ratio = ratio
        except AttributeError as error:
            raise ValueError(
                f"{self._title} has no compression_ratio that can be set ({error}); a sweep needs one"
            ) from error
        with self._kvpress_call(layer) as (cache, kwargs, attention):
            stored = cache.layers[layer.index]
            if hasattr(press, "forward_hook"):
                press.forward_hook(layer.module, [], kwargs, [layer.hidden, attention])
                keys, values = stored.keys, stored.values
            else:
                states = layer.hidden, stored.keys, stored.values
                keys, values = press.compress(layer.module, *states, attention, kwargs)
            masked = getattr(layer.module, "masked_key_indices", None)
        if masked is not None:
            keep = torch.ones(layer.keys.shape[:3], dtype=torch.bool, device=layer.keys.device)
            keep[tuple(masked)] = False
            return Selection(keep)
        return ForeignSelection(_kept_positions(layer, keys, values), keys, values)

    @contextmanager
    def _kvpress_call(
        self, layer: LayerObservation
    ) -> Iterator[tuple[DynamicCache, dict[str, Any], Tensor | None]]:
        """Cache, keywords and attention as kvpress's hook gets them.

        What a press leaves on the module is taken off again.
        """
        module = layer.module
        before = dict(module.__dict__)
        cache = DynamicCache()
        for index in range(layer.index):  # a press looks for its layer by index
            cache.update(layer.keys[:, :, :0], layer.values[:, :, :0], index)
        cache.update(layer.keys.clone(), layer.values.clone(), layer.index)
        positions = torch.arange(layer.tokens, device=layer.keys.device)
        kwargs = {
            "hidden_states": layer.hidden,
            "past_key_values": cache,
            "cache_position": positions,
            "position_ids": positions[None],
            "position_embeddings": (layer.cos, layer.sin),
        }
        if "rotary_emb" not in module._modules:
            module.__dict__["rotary_emb"] = lambda like, position_ids: layer.rope(position_ids[0])
        try:
            yield cache, kwargs, layer.window_attention(layer.tokens) if self.attentions else None
        finally:
            for name in module.__dict__.keys() - before.keys():
                del module.__dict__[name]
            module.__dict__.update(before)


def ratio_of(budget: Budget, tokens: int) -> float:
    """The ratio that a foreign press is given, which knows no other budget.

    Of a number of tokens, a millionth of an entry is added, so that truncating keeps the count whatever
    rounding does; a press that truncates the number it removes may keep one entry more in all.
    """
    if budget.tokens is None:
        return budget.removed_share(tokens)
    return 0.0 if budget.tokens >= tokens else 1 - (budget.tokens + 1e-6) / tokens


def _defined(press: Any, verb: str, owner: str) -> bool:
    """Whether `verb` of the press is the one of kvpress's class `owner`, not one of its own."""
    return str(getattr(type(press), verb).__qualname__) == f"{owner}.{verb}"


def _watching_ratio(press: Any) -> tuple[Any, list[str]]:
    """A copy of the press, and a list that is filled when its ratio is looked at."""
    read: list[str] = []
    ratio = getattr(press, "compression_ratio", 0.0)

    def noted(_: Any) -> Any:
        read.append("compression_ratio")
        return ratio

    watched = copy(press)
    watched.__class__ = type(type(press).__name__, (type(press),), {"compression_ratio": property(noted)})
    return watched, read


def _described(press: Any) -> dict[str, Any]:
    """Class and fields of a foreign press as JSON values, presses inside likewise, without ratios."""
    plain = (bool, int, float, str, type(None))
    description: dict[str, Any] = {"press": type(press).__name__}
    for name, value in vars(press).items():
        if isinstance(value, plain) and not name.endswith("compression_ratio"):
            description[name] = value
        elif callable(getattr(value, "compress", None)) or callable(getattr(value, "score", None)):
            description[name] = _described(value)
        elif isinstance(value, list | tuple) and all(isinstance(each, plain) for each in value):
            description[name] = list(value)
    return description


def _kept_positions(layer: LayerObservation, keys: Tensor, values: Tensor) -> Tensor:
    """(B, H, T) bool: where the entries that are left came from, found by their values; else the last ones.

    Each head has as many True as entries are left. They are compared bit by bit through a hash; a press that
    changes values (merging) hides where they came from.

    Args:
        layer: with all entries.
        keys: (B, H, K, *) of those that are left.
        values: (B, H, K, d), likewise.
    """
    left = keys.shape[2]
    last = torch.arange(layer.tokens, device=keys.device) >= layer.tokens - left
    keep = last.expand(layer.keys.shape[:3])
    if not left:
        return keep

    # By values alone, and then by keys as well, where these have not been changed.
    whole, part = _hash(layer.values), _hash(values)
    both = part + _hash(keys) if keys.shape == values.shape else part
    for full, remaining in ((whole, part), (whole + _hash(layer.keys), both)):
        hashes = remaining.sort(dim=-1).values
        nearest = hashes.gather(-1, torch.searchsorted(hashes, full).clamp(max=left - 1))
        is_left = nearest == full
        keep = torch.where((is_left.sum(-1) == left)[..., None], is_left, keep)
    return keep


def _hash(entries: Tensor) -> Tensor:
    """(B, H, *) int64 hash of entries (B, H, *, d), the same wherever an entry stands.

    It is a sum of integers, which add up in any order.
    """
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (entries.shape[-1],), generator=generator).to(entries.device) | 1
    return (entries.float().contiguous().view(torch.int32).long() * odd).sum(-1)
