"""Entries in 8, 4 or 2 bits, packed into bytes.

Keys are quantised in groups of `GROUP` numbers along the tokens, values in groups along the channels:
code = round((x − low) / scale), with low = min and scale = (max − min) / (2^bits − 1) of each group kept in
float16.
Source: Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750;
authors' repository jy-yuan/KIVI.
Differs: no part of the context stays in full precision; the tokens of question and answer all do. Codes are
rounded against the stored float16 scale. Own code, since the backends that transformers offers know neither
heads that keep different numbers of entries nor entries that move: HQQ 0.2.8 works with torch 2.13 and errs
as much, quanto 0.2.7 compiles C++ at first use and has no 8 bits in groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 32
"""Numbers that share a scale, as in the paper."""

BITS = (16, 8, 4, 2)
"""Sizes of a stored number; 16 is bfloat16, or float16 where the model computes in it."""


def check_bits(bits: int | None) -> int | None:
    """`bits`, one of `BITS`, or None for a cache as the model computes it.

    Raises:
        ValueError: anything else.
    """
    if bits is not None and (type(bits) is not int or bits not in BITS):
        raise ValueError(
            f"cache_bits={bits!r} must be one of {', '.join(map(str, BITS))}, or null for the model's own "
            "precision"
        )
    return bits


@dataclass(frozen=True, eq=False)
class Packed:
    """Quantised entries (H, K, c).

    Attributes:
        codes: (H, K, ⌈c · bits / 8⌉) uint8, several to a byte, the first in the lowest bits.
        scale: (H, ⌈K / GROUP⌉, c) where groups lie along the tokens (`per_channel`), else
            (H, K, ⌈c / GROUP⌉).
        low: like scale.
        bits: 8, 4 or 2.
        size: c.
        per_channel: whether groups lie along the tokens.
        dtype: of the entries before and after.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int
    size: int
    per_channel: bool
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, K, c)."""
        return self.codes.shape[0], self.codes.shape[1], self.size

    @property
    def device(self) -> torch.device:
        """Of the codes."""
        return self.codes.device

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.scale, self.low))

    def bytes_of(self, entries: Sequence[int]) -> int:
        """Bytes of the first `entries[h]` entries of each head h, scales included."""
        groups = [ceil(n / GROUP) if self.per_channel else n for n in entries]
        of_group = self.scale.shape[-1] * 2 * self.scale.element_size()  # scale and low
        return sum(entries) * self.codes.shape[-1] + sum(groups) * of_group

    def unpack(self) -> Tensor:
        """(H, K, c): the entries, dequantised."""
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8, device=self.codes.device)
        numbers = (self.codes[..., None] >> shifts) & (2**self.bits - 1)
        numbers = numbers.flatten(2)[..., : self.size]
        scale, low = (_spread(part, self.per_channel, self.shape) for part in (self.scale, self.low))
        return torch.addcmul(low, numbers.float(), scale).to(self.dtype)

    def to(self, device: torch.device, non_blocking: bool = False) -> Packed:
        """The same entries on a device, still packed."""
        codes, scale, low = (
            part.to(device, non_blocking=non_blocking) for part in (self.codes, self.scale, self.low)
        )
        return replace(self, codes=codes, scale=scale, low=low)

    def joined(self, other: Packed) -> Packed:
        """These entries and others behind them; both with groups along the channels."""
        parts = zip((self.codes, self.scale, self.low), (other.codes, other.scale, other.low), strict=True)
        codes, scale, low = (torch.cat((mine, more), dim=1) for mine, more in parts)
        return replace(self, codes=codes, scale=scale, low=low)

    def gathered(self, positions: Tensor) -> Packed:
        """Entries at (H, n) positions, exactly as they are; groups lie along the channels."""
        codes, scale, low = (rows_at(part, positions) for part in (self.codes, self.scale, self.low))
        return replace(self, codes=codes, scale=scale, low=low)


def pack(entries: Tensor, bits: int, per_channel: bool, counts: Tensor | None = None) -> Packed:
    """Quantise entries (H, K, c) to 8, 4 or 2 bits.

    Args:
        entries: of any float type.
        bits: 8, 4 or 2.
        per_channel: groups along the tokens, else along the channels.
        counts: (H,) entries that exist in each head; what lies behind them leaves no trace. None: all.
    """
    # Behind a head's own entries stands the last of them, once more.
    heads, length, size = entries.shape
    numbers = entries.float()
    if counts is not None and length:
        last = (counts - 1).clamp(min=0)[:, None]
        at = torch.arange(length, device=entries.device).expand(heads, -1)
        numbers = rows_at(numbers, torch.minimum(at, last))

    # Lowest number and scale of each group, in float16 where all numbers fit in it.
    groups = _groups(numbers, per_channel)
    low, high = groups.amin(-1), groups.amax(-1)
    fits = not numbers.numel() or float(numbers.abs().max()) < torch.finfo(torch.float16).max
    dtype = torch.float16 if fits else torch.float32
    low, scale = low.to(dtype), ((high - low) / (2**bits - 1)).to(dtype)

    # Codes, rounded against what is stored of the scale.
    step = _spread(torch.where(scale > 0, scale, 1), per_channel, entries.shape)
    start = _spread(low, per_channel, entries.shape)
    codes = ((numbers - start) / step).round().clamp(0, 2**bits - 1).to(torch.uint8)

    # Several codes to a byte.
    per_byte = 8 // bits
    codes = functional.pad(codes, (0, -size % per_byte)).unflatten(-1, (-1, per_byte))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=entries.device)
    packed = (codes << shifts).sum(-1, dtype=torch.uint8)
    return Packed(packed, scale, low, bits, size, per_channel, entries.dtype)


def rows_at(entries: Tensor, positions: Tensor) -> Tensor:
    """(H, T, c) at (H, n) positions: (H, n, c)."""
    heads, length, size = entries.shape
    rows = positions + length * torch.arange(heads, device=positions.device)[:, None]
    return entries.reshape(heads * length, size).index_select(0, rows.flatten()).view(*positions.shape, size)


def _groups(numbers: Tensor, per_channel: bool) -> Tensor:
    """(H, groups, c, GROUP) along the tokens, or (H, K, groups, GROUP) along the channels.

    The last number of a short group is repeated.
    """
    along = numbers.mT if per_channel else numbers
    missing = -along.shape[-1] % GROUP
    if missing and along.shape[-1]:
        along = torch.cat((along, along[..., -1:].expand(*along.shape[:-1], missing)), dim=-1)
    groups = along.unflatten(-1, (along.shape[-1] // GROUP, GROUP))
    return groups.transpose(1, 2) if per_channel else groups


def _spread(part: Tensor, per_channel: bool, shape: Sequence[int]) -> Tensor:
    """Scales or lows of groups, repeated to (H, K, c) in float32."""
    part = part.float()
    if per_channel:
        return part.repeat_interleave(GROUP, dim=1)[:, : shape[1]]
    return part.repeat_interleave(GROUP, dim=2)[..., : shape[2]]
