"""What a press is: it observes each layer in the prefill, selects what stays for a ratio, and applies the selection to the cache.

The three steps are apart because one prefill serves a whole sweep: hidden states of all layers would not fit,
so looking happens in the hook; what was seen does not depend on the ratio, so one look serves every ratio;
selecting with all layers at hand makes per-layer, per-head and global budgets the same kind of thing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from kvcache.compressing import Framing, Prefill, compressing
from kvcache.decode_hooks import Follower
from kvcache.devices import moved, together
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, Threshold, budget, gather


class BasePress(ABC):
    """A compression method. Subclasses are frozen dataclasses whose fields are the paper's hyperparameters (and the CLI's options)."""

    compression_ratio: float
    """Fraction of entries removed, used by `with press(model)`; a sweep passes ratios of its own."""

    lossless: ClassVar[bool] = False
    """Whether the press keeps everything, so that a sweep runs it once, at ratio 0."""

    whole_context: ClassVar[bool] = False
    """Whether the method itself passes over the whole cached context again, or moves its positions."""

    @property
    def needs_whole_context(self) -> bool:
        """Whether this press or one inside it cannot compress a context chunk by chunk while it is being read."""
        return self.whole_context or any(press.needs_whole_context for press in self._inside())

    def has(self, attribute: str) -> bool:
        """Whether an attribute is set on this press or on one inside it."""
        return bool(getattr(self, attribute)) or any(press.has(attribute) for press in self._inside())

    holds_hidden: ClassVar[bool] = False
    """Whether what the press observes holds the hidden states of every layer until it selects."""

    adds_entries: ClassVar[bool] = False
    """Whether entries of the press's own join the cache: then a selection spans more than the context's."""

    layer_by_layer: ClassVar[bool] = False
    """Whether `select` needs of a layer only its scores (B, H, T) and no other layer, so that it may act while decoding too."""

    @property
    def own_budget(self) -> bool:
        """Whether a field of the press sets its budget: then every ratio above 0 means that budget, and a sweep runs the press once."""
        return False

    @property
    def claims_ratio(self) -> bool:
        """Whether at ratio r no more than 1 - r of the full cache's bytes are left.

        Else the ratio is of something else, as the press's docstring says, and only the measured
        `kept_fraction` tells what is left.
        """
        return True

    @abstractmethod
    def observe(self, layer: LayerObservation) -> Any:
        """What the press wants to remember of a layer: ratio-free, small, no hidden states. Called once per layer and context."""

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> Sequence[Any]:
        """Look again with passes over the cached context, once for all ratios; by default nothing more is needed."""
        return evidence

    @abstractmethod
    def select(self, evidence: Sequence[Any], ratio: float) -> list[Selection]:
        """Which entries stay at `ratio`, one selection per observed layer, given the evidence of all of them."""

    @property
    def has_threshold(self) -> bool:
        """Whether entries can be chosen by the score they reach instead of by a ratio."""
        return False

    def select_above(self, evidence: Sequence[Any], threshold: Threshold) -> list[Selection]:
        """Which entries reach the threshold, one selection per observed layer; only where `has_threshold`."""
        raise ValueError(
            f"press {self.name} has no threshold: what it keeps is not decided by one score per entry; give it a ratio"
        )

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys and values (B, H, K, d) in the order of `selection.positions`, from full ones (B, H, T, d). New tensors."""
        return gather(keys, selection.positions), gather(values, selection.positions)

    def while_decoding(self, ratio: float | Threshold) -> Follower | None:
        """A new object that acts on one layer of one row while its answer is written; None (the default): the row only grows.

        Called once per row and compressed layer; the prefill is shared all the same.
        """
        return None

    def notes(self, seen: Any) -> Tensor | None:
        """What the follower is to know of each entry, (B, H, T, m), from what was observed in the layer; by default nothing."""
        return None

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write into `folder` what the press then loads with `weights=folder`, learned from texts; for methods with a published recipe.

        Args:
            model: whose weights they will be.
            pieces: of text, as token ids.
            folder: exists.

        Raises:
            ValueError: there is no recipe.
        """
        raise ValueError(
            f"press {self.name} has no recipe: it learns nothing, or its authors publish only the result"
        )

    @property
    def gathers(self) -> bool:
        """Whether `apply` only picks entries, so that variants may share memory."""
        return type(self).apply is BasePress.apply

    def next_position(self, selections: Sequence[Selection]) -> int:
        """Position at which tokens after the context continue: the context's length, unless keys are given new positions."""
        return selections[0].keep.shape[-1]

    def entries(self, layers: int, heads: int, tokens: int, ratio: float) -> tuple[int, int]:
        """Fewest and most entries the press may keep of a context; a run stops if a measured budget lies outside."""
        exact = layers * heads * budget(tokens, ratio)
        return exact, exact

    @property
    def name(self) -> str:
        """Name of the press in the catalogue: that of its file (without `_press`, which names of standard modules carry)."""
        return type(self).__module__.rsplit(".", 1)[-1].removesuffix("_press")

    def parameters(self) -> dict[str, Any]:
        """All fields but the ratio, as JSON values; a press inside is given as its name and parameters."""
        return {
            name: {"press": value.name, **value.parameters()} if isinstance(value, BasePress) else value
            for name, value in self._options()
        }

    def identity(self) -> Hashable:
        """Equal for presses that differ in nothing but their ratio."""
        return (
            type(self),
            *(value.identity() if isinstance(value, BasePress) else value for _, value in self._options()),
        )

    def _inside(self) -> list[BasePress]:
        return [value for _, value in self._options() if isinstance(value, BasePress)]

    def _options(self) -> list[tuple[str, Any]]:
        return [
            (field.name, getattr(self, field.name))
            for field in fields(self)
            if field.name != "compression_ratio"
        ]  # type: ignore[arg-type]

    def __call__(self, model: nn.Module, framing: Framing | None = None) -> AbstractContextManager[nn.Module]:
        """`with press(model): model(ids, past_key_values=cache)` compresses the cache of that prefill.

        Args:
            model: of transformers.
            framing: the prompt around the context; only presses that let the model read on (`probe`) make use
                of it.
        """
        return compressing(model, self, framing)

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Runs after the attention of `layer`, in the prefill only."""
        self.compress(layer, prefill)

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Compress this layer, or, where the decision needs all layers, remember what is needed for `finish`."""
        prefill.collect(layer, self.observe(layer))

    def finish(self, prefill: Prefill) -> None:
        """Compress the layers that `compress` left for the end of the prefill.

        Raises:
            ValueError: the press moves positions, but some layers (with sliding windows) keep theirs.
        """
        if not prefill.layers or self.compression_ratio == 0:
            return
        evidence = together(self.probe(prefill, prefill.evidence))
        selections = self.select(evidence, self.compression_ratio)
        position = self.next_position(selections)
        check_positions(self, position, selections, len(prefill.layers) == len(prefill.cache.layers))
        for index, selection, seen in zip(prefill.layers, selections, evidence, strict=True):
            full = prefill.cache.layers[index]
            selection, notes = moved((selection, self.notes(seen)), full.keys.device)
            prefill.replace(index, *self.apply(full.keys, full.values, selection), selection, position, notes)


def check_positions(
    press: BasePress, position: int, selections: Sequence[Selection], all_layers: bool
) -> None:
    """Refuse to move positions in a model where some layers are left whole.

    Raises:
        ValueError: such a press on such a model.
    """
    if position != selections[0].keep.shape[-1] and not all_layers:
        raise ValueError(
            f"{press.name} gives kept keys new positions, which this model's sliding-window layers, left whole, cannot follow"
        )
