"""The one road from what a press remembers of a context, and a budget, to what a row of answers reads.

    evidence ──select──▶ selections of all layers ──check──▶ ──apply──▶ entries of each layer, stored

`with press(model)`, a sweep over many budgets and compression while the context is read all call `compress`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kvcache.budget import Budget
from kvcache.devices import moved, together
from kvcache.latent import is_latent
from kvcache.observation import LayerObservation
from kvcache.quantization import rows_at
from kvcache.selection import Selection, gather
from kvcache.storage import KVStorage, KVView
from kvcache.traits import Traits


class Press(Protocol):
    """What `compress` needs of a press."""

    @property
    def name(self) -> str:
        """In the catalogue."""

    @property
    def traits(self) -> Traits:
        """What kind of method it is."""

    def select(self, evidence: Sequence[Any], budget: Budget) -> list[Selection]:
        """Which entries stay, one selection per observed layer."""

    def apply(self, keys: Tensor, values: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Kept keys and values (B, H, K, d) in the order of `selection.positions`."""

    def next_position(self, selections: Sequence[Selection]) -> int:
        """Position at which tokens after the context continue."""

    def acts_while_decoding(self, budget: Budget) -> bool:
        """Whether the press goes on while answers are written."""

    def entry_metadata(self, evidence: Any) -> Tensor | None:
        """(B, H, T, m) what its decode hook is told of each entry."""


@dataclass(frozen=True, eq=False)
class FullLayer:
    """All entries of a layer that a press has observed.

    Attributes:
        index: of the layer in the model.
        keys: (B, H, T, d) as cached.
        values: (B, H, T, d).
        window: the layer's sliding window or None.
        shared: all entries as rows read them, of a single context (B = 1): targets whose entries are those of
            the full layer then read them from it, each through a mask, instead of a copy. For many targets,
            which are read together. None: each target reads a copy of what it keeps.
    """

    index: int
    keys: Tensor
    values: Tensor
    window: int | None
    shared: KVView | None = None


class Target(NamedTuple):
    """What is asked of a press.

    Attributes:
        budget: how much of the context may stay.
        bits: of a stored number; None: as the model computes it.
    """

    budget: Budget
    bits: int | None = None


class Choice(NamedTuple):
    """What stays at one budget.

    Attributes:
        selections: one per observed layer.
        next_position: at which the text goes on.
    """

    selections: list[Selection]
    next_position: int


@dataclass(frozen=True, eq=False)
class Compression:
    """What a press keeps of a context at several budgets.

    Attributes:
        press: that chose.
        evidence: per observed layer.
        layers: the observed layers.
        targets: what was asked for.
        choices: what stays, per budget.
    """

    press: Press
    evidence: Sequence[Any]
    layers: Sequence[FullLayer]
    targets: Sequence[Target]
    choices: dict[Budget, Choice]

    def __iter__(self) -> Iterator[tuple[FullLayer, list[list[KVView]]]]:
        """Layer by layer, per target what each context of the batch keeps.

        Nothing is stored before it is asked for, so that a layer's full entries can go when it has been.
        """
        acting = [self.press.acts_while_decoding(target.budget) for target in self.targets]
        for at, layer in enumerate(self.layers):
            device = layer.keys.device
            metadata = self.press.entry_metadata(self.evidence[at]) if any(acting) else None
            selections = [self.choices[target.budget].selections[at] for target in self.targets]
            selections, metadata = moved((selections, metadata), device)
            of_targets = [
                _LayerOfTarget(selection, target.bits, acts)
                for selection, target, acts in zip(selections, self.targets, acting, strict=True)
            ]
            yield layer, _stored(self.press, layer, of_targets, metadata)


def compress(
    press: Press,
    evidence: Sequence[Any],
    layers: Sequence[FullLayer],
    targets: Sequence[Target],
    *,
    all_layers: bool,
) -> Compression:
    """What `press` keeps of a context for each target.

    Args:
        press: that observed the layers.
        evidence: per observed layer, what it remembers.
        layers: the observed layers, in the same order.
        targets: budgets that remove something (see `removes`), with the bits of a stored number.
        all_layers: whether every layer of the model was observed: none is left whole.

    Raises:
        ValueError: the press moves positions, but some layers (with sliding windows) keep theirs.
    """
    evidence = together(evidence)
    tokens = layers[0].keys.shape[2]
    choices: dict[Budget, Choice] = {}
    for budget in dict.fromkeys(target.budget for target in targets):
        selections = press.select(evidence, budget)
        choices[budget] = Choice(selections, press.next_position(selections))
        if choices[budget].next_position != tokens and not all_layers and press.traits.moves_positions:
            raise ValueError(
                f"{press.name} gives kept keys new positions, which this model's sliding-window layers, left "
                "whole, cannot follow"
            )
    return Compression(press, evidence, layers, targets, choices)


class NamedPress(Protocol):
    """What `check_can_compress` needs of a press."""

    @property
    def name(self) -> str:
        """In the catalogue."""

    @property
    def traits(self) -> Traits:
        """What kind of method it is."""


def check_can_compress(press: NamedPress, layer: LayerObservation) -> None:
    """Refuse a press that cannot be right on a layer of this kind.

    Raises:
        ValueError: it changes keys or values, where latent vectors are cached that both are made of.
    """
    if is_latent(layer.module) and not press.traits.only_selects:
        raise ValueError(
            f"{press.name} changes keys or values, but {type(layer.module).__name__} caches latent vectors "
            "that both are made of; use a press that only chooses entries"
        )


def removes(press: Press, budget: Budget) -> bool:
    """Whether the press removes or changes entries of the context at that budget.

    Else there is nothing to compress.
    """
    return press.traits.evicts_in_prefill and not budget.keeps_everything


class _LayerOfTarget(NamedTuple):
    """What one target keeps of a layer.

    Attributes:
        selection: (B, H, T).
        bits: of a stored number; None: as the model computes it.
        acts: whether a decode hook will act on the entries.
    """

    selection: Selection
    bits: int | None
    acts: bool


def _stored(
    press: Press, layer: FullLayer, of_targets: Sequence[_LayerOfTarget], metadata: Tensor | None
) -> list[list[KVView]]:
    """Per target, what each context of the batch keeps in one layer.

    Targets share memory where a press only picks entries. What a decode hook acts on has its entries in order
    of position, with metadata; quantised entries too are on their own, since the groups of a shared order
    would depend on the other targets.
    """
    batch = range(layer.keys.shape[0])
    views: dict[int, list[KVView]] = {}

    # Targets that read one storage: the full layer, or the entries ordered by how many targets keep them.
    sharing = [
        at
        for at, target in enumerate(of_targets)
        if press.traits.only_selects and not target.acts and target.bits is None
    ]
    if layer.shared is not None:
        for at in sharing:
            selection = of_targets[at].selection
            views[at] = [KVView(layer.shared.storage, selection.counts[0], selection.keep[0])]
    elif len(sharing) > 1:
        per_row = []
        for row in batch:
            keeps = [of_targets[at].selection.keep[row] for at in sharing]
            per_row.append(_nested(layer.keys[row], layer.values[row], keeps, layer.window))
        views = {at: list(of_rows) for at, *of_rows in zip(sharing, *per_row, strict=True)}

    # All others have entries of their own.
    for at, target in enumerate(of_targets):
        if at not in views:
            views[at] = _own_entries(press, layer, target, metadata)
    return [views[at] for at in range(len(of_targets))]


def _own_entries(
    press: Press, layer: FullLayer, target: _LayerOfTarget, metadata: Tensor | None
) -> list[KVView]:
    """What each context of the batch keeps in one layer, stored for one target alone."""
    selection = target.selection
    keys, values = press.apply(layer.keys, layer.values, selection)
    of_entries: Sequence[Tensor | None] = [None] * len(keys)
    if target.acts and metadata is not None:
        of_entries = list(gather(metadata, selection.positions))
    views = []
    for row in range(len(keys)):
        counts, positions = selection.counts[row], selection.positions[row]
        view = KVView.of_entries(keys[row], values[row], counts, positions, layer.window, of_entries[row])
        views.append(view if target.bits is None else view.quantised(target.bits, target.acts))
    return views


def _nested(keys: Tensor, values: Tensor, keeps: Sequence[Tensor], window: int | None) -> list[KVView]:
    """Targets of one layer, sharing memory where their kept sets are nested.

    Entries are ordered by how many targets keep them; a target whose set is a prefix of that order in every
    head reads the shared storage, any other gets one of its own.

    Args:
        keys: (H, T, d) full keys of the layer.
        values: (H, T, d).
        keeps: per target a (H, T) bool mask.
        window: the layer's sliding window or None.
    """
    # Which targets keep a prefix of the common order.
    masks = torch.stack(list(keeps))  # (V, H, T)
    counts = masks.sum(-1)  # (V, H)
    order = masks.sum(0).sort(dim=-1, descending=True, stable=True).indices  # (H, T)
    ranked = masks.gather(-1, order.expand_as(masks))
    prefix = torch.arange(masks.shape[-1], device=masks.device) < counts[..., None]
    nested = (ranked == prefix).flatten(1).all(-1)

    # One storage for them, as long as the longest.
    length = int(counts[nested].max()) if bool(nested.any()) else 0
    shared = None
    if length:
        first = order[:, :length]
        positions = first if window is not None else None
        shared = KVStorage(rows_at(keys, first), rows_at(values, first), positions, window)

    views = []
    for at, is_nested in enumerate(nested.tolist()):
        if is_nested and shared is not None:
            everything = bool((counts[at] == length).all())
            views.append(KVView(shared, None if everything else counts[at]))
        else:
            positions = Selection(masks[at][None]).positions[0]
            own = rows_at(keys, positions), rows_at(values, positions)
            views.append(KVView.of_entries(*own, counts[at], positions, window))
    return views
