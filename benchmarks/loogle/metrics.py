"""Metrics of LooGLE, without running what an answer says.

Source: bigai-nlco/LooGLE at 6734382 (MIT): Evaluation/automatic_*.py.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.text.metrics import load_scorer, on_fresh_stack

BERTSCORE_FIX = "pip install bert-score"
"""What to do where the package is missing."""


def parse_literal(text: Any) -> Any:
    """A text read as a literal of Python, else as JSON; None if it is neither. Nothing is run."""
    if not isinstance(text, str):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None


def score_cloze(reference: Mapping[str, str], prediction: str) -> dict[str, float]:
    """Share of the masks that are equal, and share of those with a word in common with the reference.

    0 if the answer is no mapping.
    """
    answer = parse_literal(prediction)
    if not isinstance(answer, dict) or not reference:
        return {"exact": 0.0, "partial": 0.0}
    exact = sum(mask in answer and answer[mask] == text for mask, text in reference.items())
    filled = {mask: value for mask, value in answer.items() if isinstance(value, str)}
    partial = sum(
        bool(set(text.split()) & set(filled.get(mask, "").split())) for mask, text in reference.items()
    )
    return {"exact": exact / len(reference), "partial": partial / len(reference)}


def rouge_recall(reference: str, prediction: str) -> dict[str, float]:
    """Recall of ROUGE-1, ROUGE-2 and ROUGE-L of the package `rouge`.

    0 where it finds no word, or gives up on a very long sentence.

    Raises:
        ValueError: the package is missing.
    """
    package = load_scorer("rouge", "rouge")
    scores = {}
    for name, metric in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")):
        scorer = package.Rouge(metrics=[metric], stats=["r"])
        try:
            [score] = on_fresh_stack(_rouge, scorer, prediction, reference)
        except (ValueError, RecursionError, AssertionError):
            scores[name] = 0.0
        else:
            scores[name] = min(1.0, max(0.0, float(score[metric]["r"])))
    return scores


def _rouge(scorer: Any, prediction: str, reference: str) -> Any:
    return scorer.get_scores(prediction, reference)


def bleu(reference: str, prediction: str, n: int) -> float:
    """BLEU of one sentence with all weight on n-grams of one length, words between spaces.

    That is the brevity penalty times the clipped precision. As nltk's `sentence_bleu` with weights
    (1, 0, 0, 0) or (0, 0, 0, 1), which gives 2e-308 instead of 0 where no n-gram matches.
    """
    wanted, given = (text.replace("\n", " ").split() for text in (reference, prediction))
    counted, allowed = (
        Counter(zip(*(words[start:] for start in range(n)), strict=False)) for words in (given, wanted)
    )
    shared = (counted & allowed).total()
    if not shared:
        return 0.0
    brevity = 1.0 if len(given) > len(wanted) else math.exp(1 - len(wanted) / len(given))
    return min(1.0, brevity * shared / counted.total())


def meteor(reference: str, prediction: str) -> float:
    """METEOR on the sets of words, sorted, since the official order of a set changes from run to run.

    Raises:
        ValueError: nltk or WordNet is missing.
    """
    package = load_scorer("nltk.translate.meteor_score", "nltk")
    words = [sorted(set(text.replace("\n", " ").split())) for text in (reference, prediction)]
    try:
        return float(package.single_meteor_score(*words))
    except LookupError as error:
        raise ValueError(
            "loogle: METEOR needs WordNet; run python -m nltk.downloader wordnet, or set meteor=false"
        ) from error


def bertscore(reference: str, prediction: str) -> float:
    """Element 1 of what `bert_score.score([reference], [prediction], lang="EN")` gives, as officially called.

    0 for empty text.

    Raises:
        ValueError: the package is missing.
    """
    if not prediction.strip():
        return 0.0
    package = load_scorer("bert_score", "bert-score", BERTSCORE_FIX)
    return min(1.0, max(0.0, float(package.score([reference], [prediction], lang="EN")[1])))
