"""Metrics of ZeroSCROLLS that compare an answer with one reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import combinations

from benchmarks.text.metrics import bag_f1, english_words


def f1(reference: str, prediction: str) -> float:
    """F1 of words as SQuAD compares them, accents removed."""
    wanted, given = ([_ascii(word) for word in english_words(text)] for text in (reference, prediction))
    return bag_f1(given, wanted)


def accuracy(reference: str, prediction: str) -> float:
    """Whether the first letter A to D that stands alone is the same."""
    wanted, given = (re.search(r"\b[A-D]\b", text) for text in (reference, prediction))
    return float(wanted is not None and given is not None and wanted[0] == given[0])


def exp_similarity(reference: str, prediction: str) -> float:
    """Halves with every ten points between the first percentages of both; 0 if the prediction has none."""
    wanted, given = (re.search(r"([0-9]+\.?[0-9]*)%", text) for text in (reference, prediction))
    if given is None:
        return 0.0
    points = abs((float(wanted[1]) if wanted else 0.0) - float(given[1]))
    return float(0.5 ** (points / 10))


def concordance(reference: str, prediction: str) -> float:
    """Share of the pairs of chapters in the right order.

    0 unless the prediction lists exactly the chapters of the reference.
    """
    wanted, given = _chapters(reference), _chapters(prediction)
    if sorted(wanted) != sorted(given) or not wanted:
        return 0.0
    place = {chapter: position for position, chapter in enumerate(given)}
    pairs = [place[first] < place[second] for first, second in combinations(wanted, 2)]
    return sum(pairs) / len(pairs) if pairs else 1.0


RULES: dict[str, Callable[[str, str], float]] = {
    "f1": f1,
    "accuracy": accuracy,
    "exp_similarity": exp_similarity,
    "concordance": concordance,
}
"""Name -> metric of a reference and a prediction."""


def _chapters(text: str) -> list[str]:
    """The numbers in a list of chapters, without leading zeros."""
    numbers = re.sub(r"[^0-9\s,]", "", text).replace(",", " ").split()
    return [number.lstrip("0") or "0" for number in numbers]


def _ascii(word: str) -> str:
    """A word without accents."""
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(character for character in decomposed if not unicodedata.combining(character))
