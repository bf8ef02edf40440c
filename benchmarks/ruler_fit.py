"""How RULER's generated prompts reach their length: a recipe builds a prompt of any size, `fit` finds the largest that fits.

Source: NVIDIA/RULER scripts/data/synthetic/*.py at c3f5e3b, which search the size once per task and step back
    by fixed amounts for samples that come out too long (or never stop, where the smallest prompt is too
    long).
Differs: the size is searched for every sample, so prompts fill their length; what cannot fit is reported,
never retried for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.base import Tokenizer

_JOINT = 64  # characters of the context that can decide how its end joins the question
_MEMORY = 32  # short texts whose counts are kept


@dataclass(frozen=True)
class Draft:
    """A prompt of one size."""

    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...] | None = None
    """Spans of the context that hold the answer; None to have them looked up in the text."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report may want to know: numbers of sentences, words or documents, the depth of needles."""


@dataclass(frozen=True)
class Recipe:
    """Builds the same question around more or less text."""

    build: Callable[[int], Draft]
    """Deterministic in its argument, the number of units: words, sentences or documents."""
    minimum: int
    unit_tokens: float
    """Rough tokens per unit; only the speed of the search depends on it."""
    maximum: int | None = None
    note: str = ""
    """How this differs from the official recipe, where the official one does not fit; "" for the official one."""


class Fitted(NamedTuple):
    """The largest prompt that fits."""

    draft: Draft
    tokens: int
    note: str


class Meter:
    """Counts tokens of prompts: the larger of what the three parts take one by one and what they take joined.

    A model that compresses the context reads the parts one by one, the original counts them joined; they
    differ by a token at the joint.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._memory: dict[str, int] = {}

    def count(self, text: str) -> int:
        """Tokens of one text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False)) if text else 0

    def __call__(self, draft: Draft) -> int:
        """Tokens of a prompt; what a sample's sizes share (question, answer prefix, last words of the context) is counted once."""
        last, rest = draft.context[-_JOINT:], draft.question + draft.answer_prefix
        apart = self._remembered(draft.question) + self._remembered(draft.answer_prefix)
        joined = self._remembered(last + rest) - self._remembered(last)
        return self.count(draft.context) + max(apart, joined)

    def _remembered(self, text: str) -> int:
        if text not in self._memory:
            if len(self._memory) >= _MEMORY:
                self._memory.clear()
            self._memory[text] = self.count(text)
        return self._memory[text]


def fit(recipes: Sequence[Recipe], meter: Callable[[Draft], int], budget: int) -> Fitted | int:
    """The largest prompt of the first recipe whose smallest prompt fits into `budget` tokens.

    Returns:
        The prompt, or, where none fits, the tokens of the smallest one.
    """
    smallest = None
    for recipe in recipes:
        draft = recipe.build(recipe.minimum)
        tokens = meter(draft)
        if tokens <= budget:
            return _grow(recipe, draft, tokens, meter, budget)
        smallest = tokens if smallest is None else min(smallest, tokens)
    if smallest is None:
        raise ValueError("fit needs at least one recipe")
    return smallest


def _grow(recipe: Recipe, draft: Draft, tokens: int, meter: Callable[[Draft], int], budget: int) -> Fitted:
    """Interpolate between a size that fits and one that does not: about three counts of a long text, where halving takes ten."""
    best = draft
    low, low_tokens = recipe.minimum, tokens
    high: int | None = None if recipe.maximum is None else recipe.maximum + 1
    high_tokens: int | None = None
    rate, share = (
        recipe.unit_tokens,
        0.5,
    )  # the first guess aims at half the length: `unit_tokens` is only a rough figure
    for attempt in range(64):
        slack = budget - low_tokens
        if (high is not None and high - low <= 1) or (attempt >= 2 and slack < max(rate, budget / 1024)):
            break
        guess = low + max(1, int(share * slack / rate))
        if high is not None:
            guess = min(guess if attempt < 12 else (low + high) // 2, high - 1)
        built = recipe.build(guess)
        counted = meter(built)
        if counted <= budget:
            rate = max((counted - low_tokens) / (guess - low), 1e-3) if high_tokens is None else rate
            best, low, low_tokens = built, guess, counted
        else:
            high, high_tokens = guess, counted
        if high is not None and high_tokens is not None:
            rate = max((high_tokens - low_tokens) / (high - low), 1e-3)
        share = 1.0
    return Fitted(best, low_tokens, recipe.note)
