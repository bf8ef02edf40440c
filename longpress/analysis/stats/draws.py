"""Several answers to one question: a value for each question, and the chance that one of k answers is right.

Answers to one question are not independent, so questions are what intervals and tests count.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longpress.analysis.stats.clusters import Array


class Questions(NamedTuple):
    """The questions of a list of answers, in the order of their ids.

    Attributes:
        first: (Q,) place of each question's first answer.
        of_answer: (n,) number of the question that each answer is to.
        answers: (Q,) how many answers each has.
    """

    first: NDArray[np.intp]
    of_answer: NDArray[np.intp]
    answers: NDArray[np.intp]

    @classmethod
    def of(cls, ids: ArrayLike) -> Questions:
        """Answers with the same id are to the same question."""
        _, first, of_answer, answers = np.unique(
            np.asarray(ids, dtype=str), return_index=True, return_inverse=True, return_counts=True
        )
        return cls(first, of_answer, answers)

    def means(self, values: Array) -> Array:
        """(Q,) mean over each question's answers; as they are where each has one."""
        if len(self.first) == len(self.of_answer):
            return values[self.first]
        sums: Array = np.bincount(self.of_answer, values, minlength=len(self.first)).astype(float)
        return sums / self.answers

    def agree(self, values: Any) -> bool:
        """Whether all answers to a question have the same value here."""
        here = np.asarray(values)
        return bool((here == here[self.first][self.of_answer]).all())


def pass_at(answers: int, right: int, k: int) -> float:
    """Chance that at least one of k answers is right, where `right` of `answers` drawn ones are.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374): k of the answers
    are taken without putting any back.

    Raises:
        ValueError: k is not from 1 to the number of answers.
    """
    if not 1 <= k <= answers:
        raise ValueError(f"k={k} must be from 1 to the number of answers, {answers}")
    return 1 - math.comb(answers - right, k) / math.comb(answers, k)
