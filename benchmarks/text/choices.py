"""How InfiniteBench, and SCBench after it, find the chosen option in an answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MARKS = "\n\"'.,?!{}"
"""Marks that become spaces before an announcement is looked for."""


def spaced(text: str, marks: Iterable[str]) -> str:
    """The text with spaces instead of the marks."""
    for mark in marks:
        text = text.replace(mark, " ")
    return text


def after_announcement(text: str, announcements: Sequence[str]) -> str | None:
    """What follows the first announcement that occurs, in the order given; None if none occurs.

    The character directly behind the announcement is left out, as officially.
    """
    for announcement in announcements:
        if (at := text.find(announcement)) >= 0:
            return text[at + len(announcement) + 1 :]
    return None


def official_choice(prediction: str, labels: Sequence[str]) -> bool:
    """Whether an answer chooses one of the labels (the right letter and the option's text).

    A first letter A to D decides. Else the whole answer does, what follows an announcement ("answer is: …"),
    or the first word made of such letters: "AB" and "BCD" are found too, as officially.
    """
    text = prediction.strip()
    if not text:
        return False
    if text[0] in "ABCD":
        return text[0] in labels
    if text in labels:
        return True
    text = re.sub(" {2,}", " ", spaced(text, MARKS))
    announced = after_announcement(text, ("answer is:", "answer:", "answer is", "option is"))
    if announced is not None:
        return bool(announced) and announced.startswith(tuple(labels))
    return next((word in labels for word in text.split() if word in "ABCD"), False)
