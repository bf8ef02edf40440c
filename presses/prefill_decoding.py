"""Prefill and decoding: one press compresses the context, another acts while the answer is written.

Source: kvpress 0.5.5 (PrefillDecodingPress).
Differs: the prefill is shared with all other presses of a sweep; heads that keep different numbers are
compressed further as they are. Cost: that of both presses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcache.decode_hooks import Follower
from kvcache.selection import Threshold
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
        if self.decoding.while_decoding(0.5) is None:
            raise ValueError(
                f"decoding={self.decoding.name} does nothing while decoding; give one such as DecodingPress()"
            )

    @property
    def has_threshold(self) -> bool:
        """As the first press, where the second has a budget of its own."""
        return super().has_threshold and self.decoding.own_budget

    def while_decoding(self, ratio: float | Threshold) -> Follower | None:
        """As the second press does."""
        return self.decoding.while_decoding(ratio)

    def notes(self, seen: Any) -> None:
        """Nothing: what the first press saw would mislead the second."""
