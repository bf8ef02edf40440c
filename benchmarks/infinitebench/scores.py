"""The scorers of InfiniteBench, with all their oddities: pure functions of an answer and typed labels.

Source: OpenBMB/InfiniteBench at 88b3daa (MIT): src/compute_scores.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.text import metrics
from benchmarks.text.choices import after_announcement, official_choice, spaced

HEADLINE = {
    **dict.fromkeys(
        ("passkey", "number_string", "kv_retrieval", "longbook_choice_eng", "longdialogue_qa_eng"), "accuracy"
    ),
    **dict.fromkeys(("math_find", "code_run", "code_debug"), "accuracy"),
    "longbook_sum_eng": "rougeLsum",
    "longbook_qa_eng": "qa_f1",
    "longbook_qa_chn": "character_f1",
    "math_calc": "correct_prefix",
}
"""First metric of each task."""

RETRIEVAL_MARKS = "\n:\"'.,?!{}"
"""Marks that become spaces before words are compared."""


def score(task: str, prediction: str, labels: Sequence[Any]) -> dict[str, float]:
    """Metrics of one answer, the headline first; 0 where there is no label."""
    if task == "longdialogue_qa_eng":
        first = str(labels[0]) if labels else ""
        return {
            "accuracy": float(any_name(prediction, labels)),
            "accuracy_first_name": float(first_name(prediction, first)),
        }
    if not labels:
        return {HEADLINE[task]: 0.0}
    if task == "longbook_sum_eng":
        return {"rougeLsum": metrics.rouge_lsum(prediction, [str(label) for label in labels])}
    if task == "longbook_qa_eng":
        return {"qa_f1": metrics.best(metrics.qa_f1(prediction, str(label)) for label in labels)}
    if task == "longbook_qa_chn":
        return {
            "character_f1": metrics.best(metrics.character_f1(prediction, str(label)) for label in labels)
        }
    if task == "math_calc":
        return {"correct_prefix": correct_prefix(prediction, labels)}
    rules: dict[str, Callable[[], bool]] = {
        "passkey": lambda: first_number(prediction) == labels[0],
        "number_string": lambda: first_number(prediction) == labels[0],
        "kv_retrieval": lambda: labels[0] in spaced(prediction, RETRIEVAL_MARKS).split(),
        "longbook_choice_eng": lambda: official_choice(prediction, labels),
        "math_find": lambda: number_found(prediction, labels[0]),
        "code_run": lambda: last_number(prediction) == labels[0],
        "code_debug": lambda: option(prediction, labels[0], labels[1]),
    }
    return {"accuracy": float(rules[task]())}


def first_number(prediction: str) -> str:
    """The first run of the digits 0-9; "" without any."""
    digits = re.search(r"[0-9]+", prediction)
    return digits[0] if digits else ""


def integer(text: str) -> int | None:
    """The whole number that a text is for Python; None for other texts, and for thousands of digits."""
    try:
        return int(text)
    except ValueError:
        return None


def last_number(prediction: str) -> int | None:
    """code_run: the last word as a whole number, after marks became spaces."""
    words = spaced(prediction, "\n.`'\":").split()
    return integer(words[-1]) if words else None


def number_found(prediction: str, label: float) -> bool:
    """math_find: whether the first number is the label, cut to a whole one if the label is whole.

    A minus is not read.
    """
    number = re.search(r"\d+\.\d+|\d+", prediction)
    if not number:
        return False
    try:
        return (int(number[0].split(".")[0]) if isinstance(label, int) else float(number[0])) == label
    except ValueError:
        return False


def correct_prefix(prediction: str, labels: Sequence[Any]) -> float:
    """math_calc: the share of the labels that come first in the answer, in order, up to the first mistake.

    A minus is not read.
    """
    right = 0
    for label, number in zip(labels, re.finditer(r"[0-9]+", prediction), strict=False):
        if integer(number[0]) != label:
            break
        right += 1
    return right / len(labels)


def any_name(prediction: str, labels: Sequence[Any]) -> bool:
    """longdialogue_qa_eng, today's rule: any of the names is part of the answer, in upper case."""
    text = prediction.strip().upper()
    return any(str(label).upper() in text for label in labels if str(label))


def first_name(prediction: str, label: str) -> bool:
    """longdialogue_qa_eng, the rule of the commit: the first name is one of the words, in upper case."""
    return label in [word.upper() for word in spaced(prediction, RETRIEVAL_MARKS).split()]


def option(prediction: str, name: str, letter: str) -> bool:
    """code_debug: whether the answer begins with the letter and "." or ":", or announces it or the name."""
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    text = re.sub(" {2,}", " ", spaced(text, ["\n", "`", "'", '"', "-", "*", "Option", "option"]))
    announced = after_announcement(text, ("answer is:", "is:", "answer:", "correct option is:"))
    return announced is not None and announced != "" and announced.startswith((letter, name))
