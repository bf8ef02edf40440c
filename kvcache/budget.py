"""How much of a context may stay: a ratio, a number of tokens, or the lowest score."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a press may keep of a context. One of the three is given; none where a field of the press decides.

    Attributes:
        ratio: fraction of the entries that is removed, in [0, 1), rounded to 6 decimals, so that
            0.30000000000000004 and 0.3 are one budget.
        tokens: entries kept per KV head, on average over heads and layers; a context that is shorter stays
            whole.
        threshold: lowest score that stays, in the units of the press's scores.

    Raises:
        ValueError: more than one is given, or a value is out of its range.
    """

    ratio: float | None = None
    tokens: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse two budgets at once, and values out of range."""
        if sum(given is not None for given in (self.ratio, self.tokens, self.threshold)) > 1:
            raise ValueError(
                f"{self} is more than one budget: give compression_ratio, budget_tokens or threshold"
            )
        if self.ratio is not None:
            object.__setattr__(self, "ratio", check_ratio(self.ratio))
        tokens, score = self.tokens, self.threshold
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise ValueError(
                f"budget_tokens={tokens!r} must be a whole number from 1: it is the entries kept per head, "
                "on average"
            )
        if score is not None and (
            isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score)
        ):
            raise ValueError(
                f"threshold={score!r} must be a finite number: it is the lowest score that stays"
            )

    @classmethod
    def of(cls, given: Self | float) -> Self:
        """A budget as it is, or the budget of a ratio."""
        return given if isinstance(given, cls) else cls(ratio=given)  # type: ignore[arg-type]

    @classmethod
    def fixed(cls) -> Self:
        """The budget that a field of the press sets."""
        return cls()

    @property
    def is_fixed(self) -> bool:
        """Whether a field of the press sets the budget."""
        return self.ratio is self.tokens is self.threshold is None

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is removed, whatever the context: the ratio 0."""
        return self.ratio == 0

    @property
    def has_count(self) -> bool:
        """Whether the number of entries is known before the scores are: of a ratio, or of tokens."""
        return self.ratio is not None or self.tokens is not None

    def for_context(self, tokens: int) -> Budget:
        """The budget on a context of `tokens`: one that is no longer than a budget in tokens stays whole."""
        return Budget(ratio=0.0) if self.tokens is not None and self.tokens >= tokens else self

    def entries(self, tokens: int) -> int:
        """Entries kept per KV head of `tokens`: at least one, for a context never loses its last entry.

        Of a ratio, `int(tokens * (1 - ratio))` in double precision. The truncation is that of published
        numbers (kvpress and its leaderboard): 1000 tokens at 0.9 keep 99, since 1 - 0.9 is slightly below 0.1
        in binary.

        Raises:
            ValueError: the budget is a threshold or a field of the press's, which give no number.
        """
        if self.tokens is not None:
            return min(self.tokens, tokens)
        return max(1, int(tokens * (1 - self._known_ratio())))

    def entries_together(self, heads: int, tokens: int) -> int:
        """Entries kept of `heads` heads (of one or more layers) that compete for them, `tokens` each.

        Of a ratio, all but `int(heads * tokens * ratio)`: what these methods truncate is the number removed.

        Raises:
            ValueError: as `entries`.
        """
        if self.tokens is not None:
            return heads * self.entries(tokens)
        return heads * tokens - int(heads * tokens * self._known_ratio())

    def parts(self, n: int, tokens: int) -> int:
        """How many of `n` equal parts of a context of `tokens` stay, at least one: parts stay or go whole.

        Raises:
            ValueError: as `entries`.
        """
        if self.tokens is not None:
            return max(1, n * self.entries(tokens) // tokens)
        return self.entries(n)

    def kept_share(self, tokens: int) -> float:
        """Share of `tokens` entries that stays, not rounded to whole entries.

        Raises:
            ValueError: as `entries`.
        """
        return self.entries(tokens) / tokens if self.tokens is not None else 1 - self._known_ratio()

    def removed_share(self, tokens: int) -> float:
        """Share of `tokens` entries that is removed, not rounded to whole entries.

        Raises:
            ValueError: as `entries`.
        """
        return 1 - self.kept_share(tokens) if self.tokens is not None else self._known_ratio()

    def for_chunks(self, tokens: int, size: int) -> list[Budget]:
        """One budget per chunk of `size` tokens, for a context of `tokens` that is compressed chunk by chunk.

        A number of tokens is dealt out in proportion to the chunks, so that it is met exactly in the end; no
        chunk loses its last entry. A ratio, a threshold and the press's own budget hold in every chunk.
        """
        if self.tokens is None or self.tokens >= tokens:
            return [self.for_context(tokens)] * (-(-tokens // size))
        budgets: list[Budget] = []
        dealt = 0
        for start in range(0, tokens, size):
            stop = min(start + size, tokens)
            of_chunk = max(1, stop * self.tokens // tokens - dealt)
            budgets.append(Budget(tokens=of_chunk))
            dealt += of_chunk
        return budgets

    def named(self) -> dict[str, float]:
        """The budget by the name of its option, as records and tables have it; empty where it is fixed."""
        given = {
            "compression_ratio": self.ratio,
            "budget_tokens": self.tokens,
            "threshold": self.threshold,
        }
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        """The budget as a command gives it."""
        return ", ".join(f"{name}={value}" for name, value in self.named().items()) or "its own budget"

    def _known_ratio(self) -> float:
        if self.ratio is None:
            raise ValueError(
                f"{self} gives no number of entries, which this press needs; give compression_ratio or "
                "budget_tokens"
            )
        return self.ratio


def check_ratio(ratio: float) -> float:
    """`ratio` rounded to 6 decimals.

    Raises:
        ValueError: not a number in [0, 1).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(
            f"compression_ratio={ratio!r} must be a number in [0, 1): it is the fraction of KV entries "
            "removed"
        )
    return round(float(ratio), 6)
