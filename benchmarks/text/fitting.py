"""How generated prompts reach their length: a recipe builds prompts of any size, the largest is searched.

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

from benchmarks.base import PromptParts, Tokenizer
from benchmarks.text.spans import Spans
from benchmarks.text.token_counts import Window

_JOINT = 64
"""Characters of the context that can decide how its end joins the question."""

_REMEMBERED = 32
"""Short texts whose counts are kept."""

_INTERPOLATIONS, _ATTEMPTS = 12, 64
"""Sizes that are guessed by interpolation; after that, the rest of the attempts halve what is left."""


@dataclass(frozen=True)
class PromptDraft:
    """A prompt of one size."""

    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    evidence: Spans | None = None
    """Spans of the context that hold the answer; None to have them looked up in the text."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report may want to know: numbers of sentences, words or documents, the depth of needles."""


@dataclass(frozen=True)
class PromptRecipe:
    """Builds the same question around more or less text."""

    build: Callable[[int], PromptDraft]
    """Deterministic in its argument, the number of units: words, sentences or documents."""
    minimum: int
    """Units of the smallest prompt."""
    unit_tokens: float
    """Rough tokens per unit; only the speed of the search depends on it."""
    maximum: int | None = None
    """Units of the largest prompt; None where there is no end."""
    note: str = ""
    """How this differs from the official recipe, where that does not fit; "" for the official one."""


class FittedPrompt(NamedTuple):
    """The largest prompt that fits.

    Attributes:
        draft: the prompt.
        tokens: that it takes.
        note: of the recipe that built it.
    """

    draft: PromptDraft
    tokens: int
    note: str


class PromptTokenCounter:
    """Counts tokens of prompts: of the three parts one by one, or joined, whichever takes more.

    A model that compresses the context reads the parts one by one, the original counts them joined; they
    differ by a token at the joint.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._memory: dict[str, int] = {}

    def count(self, text: str) -> int:
        """Tokens of one text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False)) if text else 0

    def __call__(self, draft: PromptDraft) -> int:
        """Tokens of a prompt.

        What the sizes of one sample share (question, answer prefix, last words of the context) is counted
        once.
        """
        last, rest = draft.context[-_JOINT:], draft.question + draft.answer_prefix
        apart = self._remembered(draft.question) + self._remembered(draft.answer_prefix)
        joined = self._remembered(last + rest) - self._remembered(last)
        return self.count(draft.context) + max(apart, joined)

    def _remembered(self, text: str) -> int:
        if text not in self._memory:
            if len(self._memory) >= _REMEMBERED:
                self._memory.clear()
            self._memory[text] = self.count(text)
        return self._memory[text]


def fit_window(
    recipes: Sequence[PromptRecipe], count: Callable[[PromptDraft], int], budget: int, window: Window
) -> FittedPrompt | int:
    """The largest prompt that has at most `budget` tokens and fits into a window with its answer.

    Args:
        recipes: in order of preference.
        count: tokens of a prompt without what stands around it.
        budget: tokens that it may take.
        window: that the whole prompt must fit.

    Returns:
        The prompt, or, where none fits, the tokens of the smallest one.

    Raises:
        ValueError: there is no recipe.
    """
    budget = min(budget, window.room)
    while True:
        fitted = fit_prompt(recipes, count, budget)
        if isinstance(fitted, int):
            return fitted
        draft = fitted.draft
        parts = PromptParts(draft.context, draft.question, draft.answer_prefix)
        excess = window.excess(parts, fitted.tokens)
        if not excess:
            return fitted
        budget -= excess  # the parts have more tokens together than one by one


def fit_prompt(
    recipes: Sequence[PromptRecipe], count: Callable[[PromptDraft], int], budget: int
) -> FittedPrompt | int:
    """The largest prompt of the first recipe whose smallest prompt fits.

    Args:
        recipes: in order of preference.
        count: tokens of a prompt.
        budget: tokens that a prompt may take.

    Returns:
        The prompt, or, where none fits, the tokens of the smallest one.

    Raises:
        ValueError: there is no recipe.
    """
    smallest = None
    for recipe in recipes:
        draft = recipe.build(recipe.minimum)
        tokens = count(draft)
        if tokens <= budget:
            return _grow(recipe, draft, tokens, count, budget)
        smallest = tokens if smallest is None else min(smallest, tokens)
    if smallest is None:
        raise ValueError("fit_prompt needs at least one recipe")
    return smallest


def _grow(
    recipe: PromptRecipe, draft: PromptDraft, tokens: int, count: Callable[[PromptDraft], int], budget: int
) -> FittedPrompt:
    """Interpolate between a size that fits and one that does not.

    That takes about three counts of a long text, where halving takes ten.

    Args:
        recipe: of the prompt.
        draft: the smallest prompt, which fits.
        tokens: that it takes.
        count: tokens of a prompt.
        budget: tokens that a prompt may take.
    """
    best = draft
    low, low_tokens = recipe.minimum, tokens
    high: int | None = None if recipe.maximum is None else recipe.maximum + 1
    high_tokens: int | None = None
    # The first guess aims at half the length, since `unit_tokens` is only a rough figure.
    rate, share = recipe.unit_tokens, 0.5

    for attempt in range(_ATTEMPTS):
        # Enough: the sizes are neighbours, or what is left is less than a unit or a thousandth.
        slack = budget - low_tokens
        neighbours = high is not None and high - low <= 1
        if neighbours or (attempt >= 2 and slack < max(rate, budget / 1024)):
            break

        # The next size, and what it takes.
        guess = low + max(1, int(share * slack / rate))
        if high is not None:
            guess = min(guess if attempt < _INTERPOLATIONS else (low + high) // 2, high - 1)
        built = recipe.build(guess)
        counted = count(built)

        # It becomes one of the two ends, between which the tokens per unit are measured.
        if counted <= budget:
            rate = max((counted - low_tokens) / (guess - low), 1e-3) if high_tokens is None else rate
            best, low, low_tokens = built, guess, counted
        else:
            high, high_tokens = guess, counted
        if high is not None and high_tokens is not None:
            rate = max((high_tokens - low_tokens) / (high - low), 1e-3)
        share = 1.0
    return FittedPrompt(best, low_tokens, recipe.note)
