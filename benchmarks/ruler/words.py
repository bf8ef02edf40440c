"""Words for RULER: the lists that keys are drawn from, and the tasks that count words (cwe, fwe).

Source: NVIDIA/RULER scripts/data/synthetic/{common_words_extraction,freq_words_extraction}.py at c3f5e3b.
Differs: the order of words is drawn for every sample (the official shuffle repeats one permutation within a
    run); a list that needs more than the 8166 words there are stays shorter than asked.
"""

from __future__ import annotations

import importlib.util
import math
import random
import string
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.ruler.prompts import RulerTask
from benchmarks.text.fitting import PromptDraft, PromptRecipe

FWE_NORM = math.pi**2 / 6
"""zeta(2): the word of rank k makes up k^-2 / zeta(2) of a coded text."""

LONG = 4096
"""Tokens; from this length on, common words are repeated more often."""


class Repeats(NamedTuple):
    """How often words come in a list.

    Attributes:
        common: the ten words that are asked for.
        uncommon: each other word.
    """

    common: int
    uncommon: int


class WordLists(NamedTuple):
    """The lists that keys and counted words are drawn from; each sorted, without repeats."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    all: tuple[str, ...]
    """Adjectives, nouns and verbs."""


@lru_cache(maxsize=1)
def word_lists() -> WordLists:
    """The lists of the package wonderwords, whose text files are read; it is not imported.

    Raises:
        ValueError: the package is not installed.
    """
    found = importlib.util.find_spec("wonderwords")
    if found is None or found.origin is None:
        raise ValueError(
            "ruler draws its words from the package wonderwords, which is not installed; "
            "install wonderwords 3"
        )
    folder = Path(found.origin).parent / "assets"
    lists = [
        (folder / f"{kind}list.txt").read_text(encoding="utf-8").splitlines()
        for kind in ("adjective", "noun", "verb")
    ]
    adjectives, nouns, verbs = ({word.rstrip() for word in words} for words in lists)
    return WordLists(
        tuple(sorted(adjectives)), tuple(sorted(nouns)), tuple(sorted(adjectives | nouns | verbs))
    )


def common_words(task: RulerTask, label: str, length: int) -> list[PromptRecipe]:
    """A numbered list in which ten words come more often than the others, after one worked example.

    Where the official numbers of repeats (30 and 3 from 4096 tokens on, 6 and 1 below) do not fit, smaller
    ones are tried.
    """
    vocabulary = list(word_lists().all)
    random.Random(label).shuffle(vocabulary)

    def listed(words: list[str], repeats: Repeats, seed: str) -> str:
        """The context: the words, the first ten of them common, in random order and numbered."""
        shuffled = words[:10] * repeats.common + words[10:] * repeats.uncommon
        random.Random(seed).shuffle(shuffled)
        return task.context(_numbered(shuffled))

    def example(size: int, repeats: Repeats) -> str:
        """The worked example, of words from the other end of the vocabulary."""
        words = vocabulary[::-1][:size]
        context = listed(words, repeats, f"{label}/example")
        return f"{context}{task.question}{task.answer_prefix} {_numbered(words[:10])}\n"

    def recipe(repeats: Repeats, shown: str, minimum: int, note: str) -> PromptRecipe:
        def build(size: int) -> PromptDraft:
            context = shown + listed(vocabulary[:size], repeats, f"{label}/{size}")
            facts = {"distinct_words": size, "repeats": list(repeats)}
            return PromptDraft(
                context, task.question, task.answer_prefix, tuple(vocabulary[:10]), facts=facts
            )

        unit_tokens = 6 * repeats.uncommon
        return PromptRecipe(build, minimum, unit_tokens=unit_tokens, maximum=len(vocabulary), note=note)

    short = example(20, Repeats(3, 1))
    smaller = [
        recipe(Repeats(6, 1), short, 11, "repeats of the lengths below 4096" if length >= LONG else ""),
        recipe(Repeats(3, 1), short, 15, "common words repeated 3 times"),
        recipe(Repeats(6, 1), "", 15, "no in-context example"),
        recipe(Repeats(3, 1), "", 11, "no in-context example, common words repeated 3 times"),
    ]
    if length < LONG:
        return smaller
    return [recipe(Repeats(30, 3), example(40, Repeats(10, 3)), 11, ""), *smaller]


def _numbered(words: list[str]) -> str:
    return " ".join(f"{position}. {word}" for position, word in enumerate(words, start=1))


def frequent_words(task: RulerTask, label: str, length: int) -> list[PromptRecipe]:
    """Coded words whose counts fall with the square of their rank.

    The first is noise ("..."), ranks two to four are asked for.
    """
    rng = random.Random(label)
    n_words = max((length - task.max_new_tokens) // 50, 4)
    drawn: dict[str, None] = {}
    while len(drawn) < n_words:
        drawn["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    vocabulary = ["...", *list(drawn)[1:]]

    def build(size: int) -> PromptDraft:
        listed = [
            word
            for rank, word in enumerate(vocabulary, start=1)
            for _ in range(int(size / rank**2 / FWE_NORM))
        ]
        random.Random(f"{label}/{size}").shuffle(listed)
        facts = {"coded_words": len(listed), "vocabulary": n_words}
        return PromptDraft(
            task.context(" ".join(listed)),
            task.question,
            task.answer_prefix,
            tuple(vocabulary[1:4]),
            facts=facts,
        )

    # Below 53 words, ranks 4 and 5 may come equally often.
    return [PromptRecipe(build, minimum=53, unit_tokens=2.2)]
