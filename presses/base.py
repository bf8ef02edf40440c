"""What a press is: it observes each layer in the prefill, selects what stays for a budget, and applies that.

The three steps are apart because one prefill serves a whole sweep: hidden states of all layers would not fit,
so observing happens in the hook; evidence does not depend on the budget, so it serves every budget;
selecting with all layers at hand makes per-layer, per-head and global budgets the same kind of thing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kvcache.budget import Budget, check_ratio
from kvcache.compress import FullLayer, Target, compress, removes
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.hooks.prefill import Prefill, PromptTokens
from kvcache.hooks.with_press import compressing
from kvcache.latent import stored
from kvcache.layer_state import compressed_in_place_of
from kvcache.modules import windows_of
from kvcache.observation import LayerObservation
from kvcache.selection import Selection, gather
from kvcache.traits import Traits


class BasePress(ABC):
    """A compression method.

    Subclasses are frozen dataclasses, whose fields are the paper's hyperparameters and the command's options.

    Raises:
        TypeError: a subclass overrides `apply` or `decode_hook` without stating its `traits`.
    """

    compression_ratio: float
    """Fraction of entries removed, used by `with press(model)`; a sweep passes budgets of its own."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Refuse a class whose traits would be those of another, so that a sweep would treat it wrongly."""
        super().__init_subclass__(**given)
        for verb, trait in (("apply", "only_selects=False"), ("decode_hook", "acts_while_decoding=True")):
            if verb in cls.__dict__ and "traits" not in cls.__dict__:
                raise TypeError(f"{cls.__name__} overrides {verb}, so let it define traits too, with {trait}")

    def __post_init__(self) -> None:
        """Refuse a ratio outside [0, 1)."""
        object.__setattr__(self, "compression_ratio", check_ratio(self.compression_ratio))

    @property
    def traits(self) -> Traits:
        """What kind of method the press is; stated wherever it differs from the defaults of `Traits`."""
        return Traits()

    # -- observe, probe, select, apply ----------------------------------------------------------------------

    @abstractmethod
    def observe(self, layer: LayerObservation) -> Any:
        """What the press wants to remember of a layer: ratio-free, small, no hidden states.

        Called once per layer and context.
        """

    def probe(self, prefill: Prefill, evidence: Sequence[Any]) -> Sequence[Any]:
        """Look again with passes over the cached context, once for all budgets.

        By default nothing more is needed.
        """
        return evidence

    @abstractmethod
    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """Which entries stay, one selection per observed layer, given the evidence of all of them."""

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys and values (B, H, K, d), in the order of `selection.positions`, as new tensors.

        Args:
            keys: (B, H, T, d) of all entries.
            values: (B, H, T, d).
            selection: which of them stay.
        """
        return gather(keys, selection.positions), gather(values, selection.positions)

    # -- what the engine may ask ----------------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        """The press's own: that of its ratio, or the one that another of its fields sets."""
        return Budget.fixed() if self.traits.has_fixed_budget else Budget(ratio=self.compression_ratio)

    def entry_bounds(self, layers: int, heads: int, tokens: int, budget: Budget) -> tuple[int, int]:
        """Fewest and most entries that the press may keep of a context, over all layers and heads.

        A run stops if a measured count lies outside. By default the even budget, exactly; where the budget
        gives no number (a threshold), anything from nothing to everything.
        """
        if not budget.has_count:
            return 0, layers * heads * tokens
        exact = layers * heads * budget.entries(tokens)
        return exact, exact

    def next_position(self, selections: Sequence[Selection]) -> int:
        """Position at which tokens after the context continue.

        The context's length, unless keys are given new positions.
        """
        return selections[0].keep.shape[-1]

    def evidence_bytes(self, heads: int, hidden: int) -> int:
        """Most bytes that the press remembers of one token in one layer until it selects.

        By default three tensors of float32 scores.

        Args:
            heads: H.
            hidden: D, for presses that hold hidden states.
        """
        return 12 * heads + (4 * hidden if self.traits.keeps_hidden_states else 0)

    # -- while decoding -------------------------------------------------------------------------------------

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Whether the press has a decode hook at that budget: not where everything is to be kept."""
        return self.traits.acts_while_decoding and not budget.keeps_everything

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """A new object that acts on one layer of one row while its answer is written.

        Called once per row and compressed layer, if the press acts while decoding; the prefill is shared all
        the same.
        """
        raise NotImplementedError(f"press {self.name} does not act while decoding")

    def entry_metadata(self, evidence: Any) -> Tensor | None:
        """(B, H, T, m) what the decode hook is to know of each entry, or None for nothing.

        Args:
            evidence: what was observed in the layer.
        """
        return None

    # -- learned presses ------------------------------------------------------------------------------------

    def calibrate(self, model: nn.Module, pieces: Iterable[Sequence[int]], folder: Path) -> None:
        """Write into `folder` what the press then loads with `weights=folder`, learned from texts.

        For methods with a published recipe.

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

    # -- identity -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the press in the catalogue: that of its file.

        Without `_press`, which is added to names of standard modules.
        """
        return type(self).__module__.rsplit(".", 1)[-1].removesuffix("_press")

    def parameters(self) -> dict[str, Any]:
        """All fields but the ratio, as JSON values; a press inside is given as its name and parameters."""
        return {
            name: {"press": value.name, **value.parameters()} if isinstance(value, BasePress) else value
            for name, value in self._options()
        }

    def identity(self) -> Hashable:
        """Equal for presses that differ in nothing but their ratio."""
        values = (value for _, value in self._options())
        return (
            type(self),
            *(value.identity() if isinstance(value, BasePress) else value for value in values),
        )

    def _options(self) -> list[tuple[str, Any]]:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return [(name, getattr(self, name)) for name in names if name != "compression_ratio"]

    # -- by itself: `with press(model)` ---------------------------------------------------------------------

    def __call__(
        self, model: nn.Module, prompt_tokens: PromptTokens | None = None
    ) -> AbstractContextManager[nn.Module]:
        """`with press(model): model(ids, past_key_values=cache)` compresses the cache of that prefill.

        Args:
            model: of transformers.
            prompt_tokens: the prompt around the context; only presses that let the model read on (`probe`)
                make use of it.
        """
        return compressing(model, self, prompt_tokens)

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Runs after the attention of `layer`, in the prefill only."""
        self.compress(layer, prefill)

    def compress(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Compress this layer; where the decision needs all layers, remember what `finish` needs."""
        prefill.collect(layer, self.observe(layer))

    def finish(self, prefill: Prefill) -> None:
        """Compress the layers that `compress` left for the end of the prefill.

        Raises:
            ValueError: the press moves positions, but some layers (with sliding windows) keep theirs.
        """
        if prefill.layers and removes(self, self.budget):
            evidence = self.probe(prefill, prefill.evidence)
            self._compress_layers(prefill, prefill.layers, evidence, prefill.observes_all_layers)

    def _compress_layers(
        self, prefill: Prefill, indices: Sequence[int], evidence: Sequence[Any], all_layers: bool
    ) -> None:
        """Put what the press keeps, at its own budget, in the place of the full entries of some layers."""
        cached, windows = prefill.cache.layers, windows_of(prefill.model)
        layers = [FullLayer(index, *stored(cached[index]), windows[index]) for index in indices]
        compression = compress(self, evidence, layers, [Target(self.budget)], all_layers=all_layers)
        _, next_position = compression.choices[self.budget]
        for layer, (rows,) in compression:
            before = cached[layer.index]
            cached[layer.index] = compressed_in_place_of(before, rows, next_position)
