"""Means and paired differences with their 95 % intervals, of one task and averaged over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from longpress.analysis.stats import clusters, intervals
from longpress.analysis.stats.clusters import Array, Clusters


@dataclass(frozen=True)
class Samples:
    """What one row of a table scored on the samples of one task.

    Attributes:
        label: names row and task in errors.
        ids: (n,) sample ids, each once.
        hashes: (n,) of their prompts.
        values: (n,) scores, or what else was measured.
        weights: (n,) of the samples in the task's mean.
        contexts: (n,) ids of their contexts, which are the clusters.
        bounded: whether values are scores in [0, 1]; False for any finite numbers.
    """

    label: str
    ids: Any
    hashes: Any
    values: Array
    weights: Array
    contexts: Any
    bounded: bool = True

    @cached_property
    def summed(self) -> Clusters:
        """The values summed by context."""
        return clusters.cluster(self.values, self.weights, self.contexts, self.bounded)

    def minus(self, other: Samples) -> Paired:
        """Paired differences to another row on the samples that both have.

        Raises:
            ValueError: a common sample was asked with different prompts.
        """
        try:
            left, right = clusters.pair(self.ids, self.hashes, other.ids, other.hashes)
        except ValueError as error:
            raise ValueError(f"{self.label} against {other.label}: {error}") from None
        change = self.values[left] - other.values[right]
        summed = clusters.cluster(change, self.weights[left], self.contexts[left], self.bounded)
        return Paired(summed, wins=int((change > 0).sum()), losses=int((change < 0).sum()))


class Paired(NamedTuple):
    """Differences of two rows on common samples, summed by context; samples that got better and worse."""

    summed: Clusters
    wins: int
    losses: int

    @property
    def ties(self) -> int:
        """Samples on which the two do not differ."""
        return self.summed.n - self.wins - self.losses


class Estimate(NamedTuple):
    """A mean (over samples, or over tasks), its standard error, and the ends of its 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


class TaskEstimate(NamedTuple):
    """The estimate of one task, and what an average over tasks needs of it.

    Attributes:
        summed: the samples.
        estimate: their mean.
        replicates: (R,) bootstrap means; None where too few samples differ for a bootstrap.
    """

    summed: Clusters
    estimate: Estimate
    replicates: Array | None = None


def task_estimates(
    scores: Sequence[Clusters],
    differences: Sequence[Clusters],
    seed: int = 0,
    resamples: int = intervals.RESAMPLES,
) -> tuple[list[TaskEstimate], list[TaskEstimate]]:
    """Estimates of scores and of paired differences on one task, all from the same resamples of contexts.

    Args:
        scores: of any rows.
        differences: of any pairs of rows.
        seed: of the bootstrap; give another one to each task of an average, so that they are independent.
        resamples: R, how often contexts are drawn anew.
    """
    resampled = [summed for summed in (*scores, *differences) if summed.resampled]
    drawn = iter(intervals.bootstrap(resampled, seed, resamples))

    def estimated(summed: Clusters, interval: Callable[..., tuple[float, float]]) -> TaskEstimate:
        replicates = next(drawn) if summed.resampled else None
        ends = interval(summed, replicates)
        return TaskEstimate(summed, Estimate(summed.mean, summed.standard_error, *ends), replicates)

    of_scores = [estimated(summed, intervals.score_interval) for summed in scores]
    return of_scores, [estimated(summed, intervals.difference_interval) for summed in differences]


def macro_average(tasks: Sequence[TaskEstimate], shares: Sequence[float], paired: bool = False) -> Estimate:
    """A weighted mean over tasks with an error and an interval of its own; see `intervals.macro`.

    Args:
        tasks: their replicates drawn independently of each other.
        shares: weight of each task; they sum to 1.
        paired: whether these are differences.
    """
    if len(tasks) == 1:
        return tasks[0].estimate
    drawn = [
        share * task.replicates
        for task, share in zip(tasks, shares, strict=True)
        if task.replicates is not None
    ]
    return Estimate(
        *intervals.macro(
            [task.summed for task in tasks],
            [task.estimate.low for task in tasks],
            [task.estimate.high for task in tasks],
            shares,
            replicates=np.sum(drawn, axis=0) if drawn else None,
            inside=[task.replicates is not None for task in tasks],
            paired=paired,
        )
    )
