"""What a suite says about its tasks: their order, named averages over them, groups for heads of tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pandas as pd

from longpress.catalogue import benchmarks


class Averages(NamedTuple):
    """Tasks in the suite's order, and per named average the share of each of its tasks (they sum to 1)."""

    tasks: list[str]
    shares: dict[str, dict[str, float]]

    @property
    def first(self) -> str:
        """The name of the first average: the headline of a table."""
        return next(iter(self.shares))

    @property
    def shown(self) -> list[str]:
        """The averages that tables show: none where there is one task only."""
        return list(self.shares) if len(self.tasks) > 1 else []


def averages(benchmark: str, tasks: Iterable[str]) -> Averages:
    """The suite's own averages, cut to the tasks that are there.

    Of a benchmark that the catalogue lacks or that cannot be loaded here, "average" is the plain mean.
    """
    present = sorted(tasks, key=_natural)
    named: Mapping[str, Sequence[Sequence[str]]] = {"average": [(task,) for task in present]}

    # a suite that cannot be loaded here still has its records
    entry = benchmarks().get(benchmark)
    if entry is not None:
        with suppress(ImportError, AttributeError, ValueError, TypeError):
            suite_class = entry.load()
            suite = suite_class()
            places = {task: at for at, task in enumerate(suite.tasks)}
            present.sort(key=lambda task: places.get(task, len(places)))
            with suppress(ValueError, TypeError):  # tasks of another version: its averages are cut below
                suite = suite_class(tasks=tuple(present))
            named = suite.averages()

    shares = {name: share for name, groups in named.items() if (share := _shares(groups, present))}
    plain = dict.fromkeys(present, 1 / max(1, len(present)))
    return Averages(present, shares or {"average": plain})  # the latter where no task is the suite's


def averages_of(part: pd.DataFrame) -> Averages:
    """The averages of one table of a frame of scores or fidelity."""
    return averages(str(part["benchmark"].iloc[0]), part.loc[~part["aggregate"], "task"].unique())


def headline(part: pd.DataFrame) -> str:
    """The first average of one table of a frame, which sums it up; frames have it of a single task, too."""
    return averages_of(part).first


def headings(benchmark: str) -> Mapping[str, Sequence[str]]:
    """The suite's groups of tasks for the heads of tables.

    None of a benchmark that the catalogue lacks or that cannot be loaded here.
    """
    with suppress(KeyError, ImportError, AttributeError, ValueError, TypeError):
        groups: Mapping[str, Sequence[str]] = benchmarks()[benchmark].load()().headings()
        return groups
    return {}


def _shares(groups: Sequence[Sequence[str]], present: Sequence[str]) -> dict[str, float]:
    """Share of each task in a mean over groups of means over their tasks, of the tasks that are there."""
    kept = [[task for task in group if task in present] for group in groups]
    kept = [group for group in kept if group]
    shares: dict[str, float] = {}
    for group in kept:
        for task in group:
            shares[task] = shares.get(task, 0.0) + 1 / (len(kept) * len(group))
    return shares


def _natural(text: str) -> list[Any]:
    """Sorts numbers inside names by value: task_2 before task_10."""
    parts = re.split(r"(\d+)", text)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
