"""One line of a table: a press at a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvcache.budget import Budget
from kvcache.compress import Target, removes
from kvcache.quantization import check_bits
from presses.base import BasePress


@dataclass(frozen=True)
class Variant:
    """A press, what it may keep, and how many bits a stored number has.

    Attributes:
        press: its own `compression_ratio` is not looked at.
        budget: what may stay; a number is a compression ratio. Where a field of the press sets its budget,
            every budget but the ratio 0 is that one; a press that keeps everything has the ratio 0.
        cache_bits: of a number of the context's cache: 16, 8, 4 or 2; None: as the model computes it.

    Raises:
        ValueError: what is given is no press, the budget is out of range, or a threshold where nothing has a
            score.
    """

    press: BasePress
    budget: Budget = Budget(ratio=0.0)
    cache_bits: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and give the budget the form that the press understands."""
        if not isinstance(self.press, BasePress):
            raise ValueError(f"a variant is (press, compression_ratio); {self.press!r} is not a press")
        budget, traits = Budget.of(self.budget), self.press.traits
        if budget.threshold is not None and not traits.takes_threshold:
            raise ValueError(
                f"press {self.press.name} takes no threshold={budget.threshold}: what it keeps is not "
                "decided by one score per entry; give it compression_ratio or budget_tokens"
            )
        if traits.is_full_cache:
            budget = Budget(ratio=0.0)
        elif traits.has_fixed_budget and not (budget.keeps_everything and traits.evicts_in_prefill):
            budget = Budget.fixed()
        elif budget.is_fixed:
            raise ValueError(
                f"no field of press {self.press.name} sets its budget; give it compression_ratio"
            )
        object.__setattr__(self, "budget", budget)
        check_bits(self.cache_bits)

    def for_context(self, tokens: int) -> Variant:
        """The variant on a context of `tokens`: see `Budget.for_context`."""
        budget = self.budget.for_context(tokens)
        return self if budget is self.budget else replace(self, budget=budget)

    @property
    def target(self) -> Target:
        """What is wanted of the press."""
        return Target(self.budget, self.cache_bits)

    @property
    def removes(self) -> bool:
        """Whether entries of the context are removed or changed once it is read."""
        return removes(self.press, self.budget)

    @property
    def acts_while_decoding(self) -> bool:
        """Whether the press goes on while answers are written."""
        return self.press.acts_while_decoding(self.budget)

    @property
    def is_full(self) -> bool:
        """Whether nothing is ever removed or rounded: the full cache, which others are compared with."""
        return self.press.traits.is_full_cache and self.cache_bits is None
