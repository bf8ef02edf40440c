"""One prefill for many presses: what each observed, and what each keeps at any number of budgets."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import nn

from kvcache.budget import Budget
from kvcache.compress import Choice, FullLayer, Target, check_can_compress, compress, removes
from kvcache.hooks.prefill import Prefill, PromptTokens
from kvcache.hooks.with_press import watching
from kvcache.latent import stored
from kvcache.layer_state import states_of
from kvcache.modules import decoder_of, windows_of
from kvcache.observation import LayerObservation
from kvcache.storage import KVView, offloaded
from longpress.pipeline.clock import now
from longpress.pipeline.compressed_context import CompressedContext, heads_keeping, share_kept
from presses.base import BasePress


class SweepObserver:
    """Lets many presses look at a prefill, and compresses nothing.

    Attributes:
        presses: one per distinct configuration (by identity), whatever the budgets.
        prefill: what was seen, after the forward pass.
        evidence: per press (by identity), what it observed in each layer.
        seconds: per press (by identity), spent observing.
        failures: per press (by identity) that raised while observing, what it raised; it is asked no more,
            the others are.
    """

    def __init__(self, presses: Sequence[BasePress]) -> None:
        """Observe for these presses; equal ones, whatever their ratio, observe once."""
        self.presses = {press.identity(): press for press in presses}
        self.evidence: dict[Hashable, list[Any]] = {identity: [] for identity in self.presses}
        self.seconds: dict[Hashable, float] = dict.fromkeys(self.presses, 0.0)
        self.failures: dict[Hashable, ValueError] = {}
        self.prefill: Prefill | None = None

    def __call__(
        self, model: nn.Module, prompt_tokens: PromptTokens | None = None
    ) -> AbstractContextManager[nn.Module]:
        """Inside, every prefill of `model` is observed, as `with press(model)` compresses it."""
        return watching(model, self, prompt_tokens)

    def forward_hook(self, layer: LayerObservation, prefill: Prefill) -> None:
        """Let every press that has not failed look at this layer, and keep what it remembers."""
        prefill.layers.append(layer.index)
        for identity, evidence in self.observe(layer).items():
            self.evidence[identity].append(evidence)

    def finish(self, prefill: Prefill) -> None:
        """Keep the full cache."""
        self.prefill = replace(prefill, layers=list(prefill.layers), evidence=[])

    def observe(self, layer: LayerObservation) -> dict[Hashable, Any]:
        """What every press observes in this layer, but those that failed."""
        observed = {}
        for identity, press in self.presses.items():
            if identity in self.failures:
                continue
            started = now()
            try:
                check_can_compress(press, layer)
                observed[identity] = press.observe(layer)
            except Exception as error:
                self._give_up(identity, layer, error)
            self.seconds[identity] += now() - started
        return observed

    def _give_up(self, identity: Hashable, layer: LayerObservation, error: Exception) -> None:
        press, shape = self.presses[identity], tuple(layer.keys.shape)
        failure = ValueError(
            f"press {press.name} failed observing layer {layer.index} with keys {shape}: {error}"
        )
        failure.__cause__ = error
        traceback.clear_frames(error.__traceback__)  # they hold the layer's tensors
        self.failures[identity] = failure
        self.evidence[identity].clear()


class PrefilledContext:
    """A context that was read once: its full cache, and what every press observed."""

    def __init__(self, observer: SweepObserver, seconds: float, offload: bool = False) -> None:
        """Take over the cache of a finished prefill that took `seconds`, observing included.

        With `offload`, what variants keep lies in host memory, each layer from when it is made; the device
        holds the full cache beside it until this object goes.
        """
        assert observer.prefill is not None
        self.observer, self.prefill, self.seconds = observer, observer.prefill, seconds
        self.tokens: int = self.prefill.cache.get_seq_length()
        self.windows = windows_of(self.prefill.model)
        self.states = states_of(self.prefill.cache)
        like = next(decoder_of(self.prefill.model).parameters())
        self._at_rest: Callable[[Sequence[KVView]], list[KVView]] = offloaded if offload else list
        self.full = self._at_rest(
            [
                KVView.of_cache_layer(layer, self.tokens, window, like)
                for layer, window in zip(self.prefill.cache.layers, self.windows, strict=True)
            ]
        )
        self._quantised: dict[tuple[int, bool], list[KVView]] = {}

    def compress(
        self,
        press: BasePress,
        targets: Sequence[Target | Budget | float],
        watched: Sequence[Sequence[int]] = (),
        *,
        count_kept: bool = False,
        in_place: bool = False,
    ) -> list[CompressedContext]:
        """What `press` keeps for each target; those with nested kept sets share memory.

        Args:
            press: one of those that observed.
            targets: budgets, with the bits of a stored number; a number is a compression ratio.
            watched: sets of positions whose survival is to be measured.
            count_kept: whether to count the heads that keep each token (`kept_by`).
            in_place: whether targets whose entries are those of the full cache read them there, each through
                a mask, instead of a copy; for many targets, which are then read together.

        Raises:
            ValueError: the press failed observing.
        """
        if press.identity() in self.observer.failures:
            raise self.observer.failures[press.identity()]
        started = now()
        given = [one if isinstance(one, Target) else Target(Budget.of(one)) for one in targets]
        wanted = [Target(budget.for_context(self.tokens), bits) for budget, bits in given]

        # What removes nothing reads the full cache; all else takes the one road.
        layers = [
            list(self._full(target.bits, press.acts_while_decoding(target.budget))) for target in wanted
        ]
        removing = [at for at, target in enumerate(wanted) if removes(press, target.budget)]
        choices: dict[Budget, Choice] = {}
        if removing and self.prefill.layers:
            evidence = press.probe(self.prefill, self.observer.evidence[press.identity()])
            compression = compress(
                press,
                evidence,
                [self._observed_layer(index, in_place) for index in self.prefill.layers],
                [wanted[at] for at in removing],
                all_layers=self.prefill.observes_all_layers,
            )
            choices = compression.choices
            for layer, views in compression:
                kept = self._at_rest([view for (view,) in views])  # one context
                for at, view in zip(removing, kept, strict=True):
                    layers[at][layer.index] = view

        # What is measured of each.
        seconds = (now() - started) / len(wanted)
        full_entries = sum(sum(kept.entries()) for kept in self.full)
        full_bytes = sum(kept.bytes() for kept in self.full)
        contexts = []
        for kept_layers, target in zip(layers, wanted, strict=True):
            choice = choices.get(target.budget, Choice([], self.tokens))
            counted = count_kept and choice.selections
            contexts.append(
                CompressedContext(
                    kept_layers,
                    self.prefill.layers,
                    choice.next_position,
                    self.tokens,
                    full_entries,
                    full_bytes,
                    evidence_kept=[share_kept(choice.selections, positions) for positions in watched],
                    seconds=seconds,
                    kept_by=heads_keeping(choice.selections)[: self.tokens] if counted else None,
                    states=list(self.states),
                )
            )
        return contexts

    def _observed_layer(self, index: int, in_place: bool) -> FullLayer:
        keys, values = stored(self.prefill.cache.layers[index])
        shared = self.full[index] if in_place else None
        return FullLayer(index, keys, values, self.windows[index], shared)

    def _full(self, bits: int | None, movable: bool) -> list[KVView]:
        """All entries of every layer in `bits` bits, made once; see `KVStorage.quantised`."""
        if bits is None:
            return self.full
        if (bits, movable) not in self._quantised:
            self._quantised[bits, movable] = [
                self._at_rest([kept.quantised(bits, movable)])[0] for kept in self.full
            ]
        return self._quantised[bits, movable]
