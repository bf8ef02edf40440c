"""Prefill and decoding: one press compresses the context, another acts while the answer is written.

Source: kvpress 0.5.5 (PrefillDecodingPress).
Differs: the prefill is shared with all other presses of a sweep; heads that keep different numbers are
compressed further as they are.
Cost: that of both presses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kvcache.budget import Budget
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.traits import Traits
from presses.base import BasePress
from presses.decoding import DecodingPress
from presses.snapkv import SnapKVPress
from presses.wrapper import WrapperPress


@dataclass(frozen=True)
class PrefillDecodingPress(WrapperPress):
    """The ratio is that of the prefill.

    Attributes:
        press: that compresses the context.
        decoding: that acts while decoding, at the same ratio if it has no budget of its own.
        compression_ratio: fraction of the context's entries removed, in [0, 1).
    """

    press: BasePress = SnapKVPress()
    decoding: BasePress = DecodingPress()
    compression_ratio: float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Refuse a second press that does nothing while decoding."""
        super().__post_init__()
        if not self.decoding.traits.acts_while_decoding:
            raise ValueError(
                f"decoding={self.decoding.name} does nothing while decoding; give one such as DecodingPress()"
            )

    @property
    def traits(self) -> Traits:
        """Those of the first press; a threshold where the second needs no ratio."""
        first = super().traits
        return replace(
            first,
            acts_while_decoding=True,
            takes_threshold=first.takes_threshold and self.decoding.traits.has_fixed_budget,
        )

    def acts_while_decoding(self, budget: Budget) -> bool:
        """As the second press does."""
        return self.decoding.acts_while_decoding(self._decoding_budget(budget))

    def decode_hook(self, budget: Budget) -> DecodeHook:
        """As the second press does."""
        return self.decoding.decode_hook(self._decoding_budget(budget))

    def _decoding_budget(self, budget: Budget) -> Budget:
        return Budget.fixed() if self.decoding.traits.has_fixed_budget else budget

    def entry_metadata(self, evidence: Any) -> None:
        """Nothing: what the first press saw would mislead the second."""
