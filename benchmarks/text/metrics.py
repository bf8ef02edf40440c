"""Metrics that several suites share: pure functions of texts, each with its official source."""

from __future__ import annotations

import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from importlib import import_module
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")

_MARKS = frozenset(
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    + "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
"""Punctuation that the suites drop from Chinese answers; "《" is officially not among it."""


def load_scorer(module: str, package: str, fix: str = "pip install 'longpress[benchmarks]'") -> Any:
    """A module of an optional scorer package, imported when it is needed.

    Raises:
        ValueError: the package is missing; names it and the fix.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"this metric needs the package {package}: {fix}") from error


def best(scores: Iterable[float]) -> float:
    """The largest of some scores, 0 for none: how LongBench and InfiniteBench join several references."""
    return max(scores, default=0.0)


def bag_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of tokens, SQuAD's formula; 0 where they share nothing."""
    common = (Counter(prediction) & Counter(reference)).total()
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def english_words(text: str) -> list[str]:
    """Words of an answer in SQuAD's normal form: lower case, no ASCII punctuation, no articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()


def chinese_letters(text: str) -> str:
    """A Chinese answer in lower case, without ASCII and Chinese punctuation and white space."""
    return "".join(letter for letter in text.lower() if letter not in _MARKS and not letter.isspace())


def qa_f1(prediction: str, reference: str) -> float:
    """Token F1 of English answers (LongBench metrics.py, InfiniteBench compute_scores.py)."""
    return bag_f1(english_words(prediction), english_words(reference))


def qa_f1_zh(prediction: str, reference: str) -> float:
    """Token F1 of Chinese answers, cut into words by jieba (LongBench metrics.py).

    Raises:
        ValueError: the package jieba is missing.
    """
    cut = [
        [word for token in chinese_words(text) if (word := chinese_letters(token))]
        for text in (prediction, reference)
    ]
    return bag_f1(*cut)


def character_f1(prediction: str, reference: str) -> float:
    """Character F1 of Chinese answers (InfiniteBench compute_scores.py)."""
    return bag_f1(chinese_letters(prediction), chinese_letters(reference))


def chinese_words(text: str) -> list[str]:
    """Words of a Chinese text, by jieba 0.42.1 in its default mode, quietly.

    Raises:
        ValueError: the package jieba is missing.
    """
    jieba = _quiet_jieba()
    return list(jieba.cut(text, cut_all=False))


@cache
def _quiet_jieba() -> Any:
    """The module jieba, which would warn when it is compiled, and report on its dictionary when loaded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*invalid escape sequence|pkg_resources is deprecated")
        jieba = load_scorer("jieba", "jieba==0.42.1")
    jieba.setLogLevel(logging.WARNING)
    return jieba


def on_fresh_stack(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function returns or raises, called in a thread of its own.

    The package `rouge` recurses once a word. On a fresh stack it is the text alone that decides whether it
    recurses too deep, and not how deep the caller is.
    """
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    thread = Thread(target=call)
    thread.start()
    thread.join()
    return future.result()


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F of the package `rouge` 1.0.1, not that of `rouge-score` (LongBench metrics.py).

    0 wherever the package raises: on a text without words (it splits sentences at every "."), and on
    sentences so long that it recurses too deep.

    Raises:
        ValueError: the package rouge is missing.
    """
    scorer = load_scorer("rouge", "rouge==1.0.1").Rouge(metrics=["rouge-l"])
    try:
        scores = on_fresh_stack(scorer.get_scores, [prediction], [reference], True)
    except Exception:  # as officially
        return 0.0
    return float(scores["rouge-l"]["f"])


def rouge_l_zh(prediction: str, reference: str) -> float:
    """ROUGE-L F, as `rouge_l` has it, of Chinese texts whose words jieba has set apart.

    Raises:
        ValueError: a package is missing.
    """
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(reference)))


def edit_similarity(prediction: str, reference: str) -> float:
    """Indel similarity in whole percents, as `fuzzywuzzy` with python-Levenshtein gives it.

    Raises:
        ValueError: the package rapidfuzz is missing.
    """
    ratio = load_scorer("rapidfuzz.fuzz", "rapidfuzz").ratio
    return round(ratio(prediction, reference)) / 100


def code_similarity(prediction: str, reference: str) -> float:
    r"""Edit similarity of the first line of code (LongBench metrics.py).

    That is the first without "`", "#" and "//", after leading line breaks.

    Raises:
        ValueError: the package rapidfuzz is missing.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return edit_similarity(line, reference)


def share_of_numbers(prediction: str, number: str) -> float:
    """Share of the numbers in a text that are the wanted one, as strings of digits (LongBench metrics.py)."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """One over the number of class names in a text, 0 if the reference is not among them (LongBench).

    Names contained in the reference are dropped, but the official loop skips the name behind each one that it
    drops, and so does this.
    """
    named = [name for name in classes if name in prediction]
    at = 0
    while at < len(named):
        if named[at] in reference and named[at] != reference:
            named.remove(named[at])
        at += 1
    return 1 / len(named) if reference in named else 0.0


def rouge_f(references: Iterable[str], prediction: str, kinds: Sequence[str]) -> dict[str, float]:
    """F-measures of the package `rouge-score` without stemming, each the best over the references.

    Args:
        references: to compare with.
        prediction: the answer.
        kinds: "rouge1", "rougeL", "rougeLsum", …

    Raises:
        ValueError: the package rouge-score is missing.
    """
    package = load_scorer("rouge_score.rouge_scorer", "rouge-score")
    scorer = package.RougeScorer(list(kinds), use_stemmer=False)
    scores = [scorer.score(reference, prediction) for reference in references]
    return {kind: min(1.0, best(float(score[kind].fmeasure) for score in scores)) for kind in kinds}


def rouge_lsum(prediction: str, references: Iterable[str]) -> float:
    """ROUGE-Lsum F of the package `rouge-score`, best reference (InfiniteBench, by way of `evaluate`).

    Raises:
        ValueError: the package rouge-score is missing.
    """
    return rouge_f(references, prediction, ["rougeLsum"])["rougeLsum"]
