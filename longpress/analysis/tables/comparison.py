"""Two presses compared, or one with all others: a frame of paired differences on the same samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longpress.analysis.records import BASELINE, FIDELITY, Record
from longpress.analysis.stats import clusters, multiple_testing, significance
from longpress.analysis.stats.clusters import Clusters
from longpress.analysis.stats.draws import Questions
from longpress.analysis.stats.estimates import (
    Estimate,
    Paired,
    Samples,
    macro_average,
    task_estimates,
)
from longpress.analysis.stats.significance import SIGNIFICANT
from longpress.analysis.tables.averages import averages
from longpress.analysis.tables.grid import MISSING
from longpress.analysis.tables.row_keys import TABLE, RowKey, TableKey, budget_text, is_ratio

MARGIN = 1.0
"""So many points a press may lose and still count as no worse."""
BLOCK = (*TABLE, "query_aware", "prefill", "budget")
"""Columns that name what is averaged over tasks: a table, query mode, prefill and budget."""
NEEDED = tuple(f"needed_{measure}" for measure in ("score", *FIDELITY))
"""Columns of samples that a test would need to tell the two apart."""
MOVED = tuple(f"{what}_{measure}" for measure in FIDELITY for what in ("delta", "p", "p_holm"))
"""Columns of differences in fidelity, their p-values, and those adjusted by Holm."""

Answers = dict["Place", dict[str, list[Record]]]
"""What one press answered: per place and sample id, the records, several where several answers were drawn."""


class Place(NamedTuple):
    """Where two presses can be compared: a table, query mode, prefill, budget and task."""

    table: TableKey
    query_aware: bool
    prefill: str
    budget: str
    task: str

    @classmethod
    def of(cls, record: Record) -> Place:
        """Where a record counts."""
        row = RowKey.of(record)
        budget = budget_text("", row.compression_ratio, row.budget_tokens, row.threshold)
        if budget == MISSING:  # none is stated: compared as the full cache is
            budget = "0"
        named = f"ratio {budget}" if is_ratio(budget) else budget
        return cls(TableKey.of(record), row.query_aware, row.prefill, named, record.task)

    @property
    def columns(self) -> dict[str, Any]:
        """The same as columns: `BLOCK` and `task`."""
        return {**self.table._asdict(), **{name: getattr(self, name) for name in self._fields[1:]}}


@dataclass(frozen=True)
class _Pair:
    """Two presses on the common samples of one place.

    Attributes:
        place: table, budget and task.
        paired: differences of the score.
        estimate: their mean.
        kept: mean kept fraction of the press.
        kept_other: that of the other.
        changes: differences of the score and of each measure of fidelity that two samples or more have.
    """

    place: Place
    paired: Paired
    estimate: Estimate
    kept: float
    kept_other: float
    changes: Mapping[str, Clusters]


def compare(records: Iterable[Record], press: str, other: str, margin: float = MARGIN) -> pd.DataFrame:
    """Paired differences `press - other`, 0 to 100, with the average over a budget's tasks before them.

    Returns:
        One entry per table, query mode, prefill, budget (`BLOCK`) and task: n, kept, kept_other, delta,
        ci_low, ci_high, p_value, p_holm, wins, ties, losses, verdict ("better", "worse" or "not
        distinguishable"), not_worse (the whole interval lies above -margin); the average, over the tasks that
        both answered, is called `average (<tasks>)` and its p-value adjusted among averages. `needed_score`
        and `needed_<measure>` are samples from which on the difference seen would be found at 5 % with 80 %
        power (`significance.samples_needed`), `delta_<measure>` (nats per token, or a share), `p_<measure>`
        and `p_holm_<measure>` the differences in fidelity; NaN where it is not known.

    Raises:
        ValueError: a press has no records, they share no sample at a common budget, a press has several
            parameter sets at one budget, or a sample was asked with different prompts.
    """
    of_press = _by_press(records)
    for name in (press, other):
        if name not in of_press:
            raise ValueError(f"no records of press '{name}'; these folders hold: {_names(of_press)}")
    frame = _compared(_answers(of_press[press]), _answers(of_press[other]), margin)
    if frame is None:
        raise ValueError(
            f"'{press}' and '{other}' share no sample at a common budget; "
            "run both at the same ratios on the same samples"
        )
    return frame


def compare_all(records: Iterable[Record], press: str, margin: float = MARGIN) -> pd.DataFrame:
    """`press` against every other one with which it shares samples at a budget, the full cache left out.

    Returns:
        As `compare`, with a column `other`: one entry per table, budget and press, of the suite's average, or
        of the only task in common; best of the others first. Adjusted by Holm within a table and budget.

    Raises:
        ValueError: as `compare`; or there is no other press.
    """
    of_press = _by_press(records)
    answers, parts = _answers(of_press.get(press, [])), []
    for other in sorted(of_press.keys() - {press, BASELINE}):
        frame = _compared(answers, _answers(of_press[other]), margin)
        if frame is not None:
            parts.append(frame.drop_duplicates(list(BLOCK)).assign(other=other))
    if not parts:
        raise ValueError(
            f"no other press shares samples and a budget with '{press}'; "
            f"these folders hold: {_names(of_press)}"
        )
    frame = pd.concat(parts, ignore_index=True).sort_values(
        [*BLOCK, "delta", "other"], kind="stable", ignore_index=True
    )
    adjusted = [_adjusted(part) for _, part in frame.groupby(list(BLOCK), sort=False)]
    return _judged(pd.concat(adjusted, ignore_index=True))


def _by_press(records: Iterable[Record]) -> dict[str, list[Record]]:
    of_press: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        of_press[record.press].append(record)
    return dict(of_press)


def _names(presses: Iterable[str]) -> str:
    return ", ".join(sorted(presses)) or "none"


def _answers(records: Iterable[Record]) -> Answers:
    """The scored records of one press by place and sample.

    Raises:
        ValueError: a sample was answered with several sets of parameters at one budget.
    """
    answers: Answers = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.score is None:
            continue
        place = Place.of(record)
        known = answers[place][record.sample_id]
        known.append(record)
        if known[0].press_parameters != record.press_parameters:
            raise ValueError(
                f"press '{record.press}' has several sets of parameters at {place.budget}; "
                "give folders with one of them"
            )
    return answers


def _compared(answers: Answers, others: Answers, margin: float) -> pd.DataFrame | None:
    """The frame of `compare`; None where the two share no sample."""
    shared = [
        place
        for place in sorted(answers.keys() & others.keys())
        if answers[place].keys() & others[place].keys()
    ]
    if not shared:
        return None
    pairs = [_pair(place, answers[place], others[place]) for place in shared]
    frame = _adjusted(pd.DataFrame([_entry(pair) for pair in pairs]))

    # the average over the tasks of a budget, before them
    blocks: dict[Place, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        blocks[pair.place._replace(task="")].append(pair)
    averaged = [entry for block in blocks.values() if (entry := _average(block)) is not None]
    if averaged:
        frame = pd.concat([_adjusted(pd.DataFrame(averaged)), frame], ignore_index=True).sort_values(
            list(BLOCK), kind="stable", ignore_index=True
        )

    # all columns, also those of measures that nothing has
    before = frame.columns.drop([*NEEDED, *MOVED], errors="ignore")
    frame = frame.reindex(columns=[*before, *NEEDED, *MOVED])
    frame["not_worse"] = significance.non_inferior(frame["ci_low"], margin)
    return _judged(frame)


def _pair(
    place: Place, answers: Mapping[str, Sequence[Record]], others: Mapping[str, Sequence[Record]]
) -> _Pair:
    """Two presses on the samples that both answered."""
    ids = sorted(answers.keys() & others.keys())
    ours, theirs = ([record for name in ids for record in of_press[name]] for of_press in (answers, others))
    paired = _samples(ours, "score").minus(_samples(theirs, "score"))
    _, (task,) = task_estimates([], [paired.summed])
    changes = {"score": paired.summed}
    for measure in FIDELITY:
        changes[measure] = _samples(ours, measure).minus(_samples(theirs, measure)).summed
    return _Pair(
        place,
        paired,
        task.estimate,
        kept=sum(record.kept_fraction for record in ours) / len(ours),
        kept_other=sum(record.kept_fraction for record in theirs) / len(theirs),
        changes={measure: change for measure, change in changes.items() if change.n > 1},
    )


def _samples(records: Sequence[Record], measure: str) -> Samples:
    """What was measured of those records that have it; of several answers to a sample, their mean.

    Raises:
        ValueError: answers to one sample had different prompts.
    """
    known = [record for record in records if getattr(record, measure) is not None]
    label = f"{records[0].benchmark}/{records[0].task}, press {records[0].press}"
    questions = Questions.of([record.sample_id for record in known])
    if not questions.agree(np.array([record.prompt_hash for record in known], dtype=str)):
        raise ValueError(
            f"{label}: a sample was answered with different prompts; keep one results folder for each"
        )
    first = [known[at] for at in questions.first]
    return Samples(
        label,
        ids=np.array([record.sample_id for record in first], dtype=str),
        hashes=np.array([record.prompt_hash for record in first], dtype=str),
        values=questions.means(np.array([getattr(record, measure) for record in known], dtype=float)),
        weights=np.array([record.weight for record in first], dtype=float),
        contexts=np.array([record.context_id for record in first], dtype=str),
        bounded=measure == "score",
    )


def _entry(pair: _Pair) -> dict[str, Any]:
    """The entry of one task."""
    paired = pair.paired
    p_value = float(significance.p_values([paired.summed])[0])
    return {
        **pair.place.columns,
        "n": paired.summed.n,
        "wins": paired.wins,
        "ties": paired.ties,
        "losses": paired.losses,
        "kept": pair.kept,
        "kept_other": pair.kept_other,
        **_points(pair.estimate, p_value),
        **_needed([pair.changes], [1.0]),
    }


def _average(block: Sequence[_Pair]) -> dict[str, Any] | None:
    """The entry of the suite's first average over the tasks of one budget; None of a single task."""
    place = block[0].place
    of_task = {pair.place.task: pair for pair in block}
    suite = averages(place.table.benchmark, of_task)
    share = suite.shares[suite.first]
    tasks = [task for task in suite.tasks if task in share]
    if len(tasks) < 2:
        return None

    # resampled anew with a seed per task, so that tasks are independent
    pairs, shares = [of_task[task] for task in tasks], np.array([share[task] for task in tasks])
    summed = [pair.paired.summed for pair in pairs]
    redrawn = [task_estimates([], [change], seed)[1][0] for seed, change in enumerate(summed)]
    p_value = float(significance.p_values([clusters.joint(summed, list(shares))])[0])
    return {
        **place._replace(task=f"average ({len(tasks)} tasks)").columns,
        "n": sum(change.n for change in summed),
        "wins": sum(pair.paired.wins for pair in pairs),
        "ties": sum(pair.paired.ties for pair in pairs),
        "losses": sum(pair.paired.losses for pair in pairs),
        "kept": float(shares @ np.array([pair.kept for pair in pairs])),
        "kept_other": float(shares @ np.array([pair.kept_other for pair in pairs])),
        **_points(macro_average(redrawn, list(shares), paired=True), p_value),
        **_needed([pair.changes for pair in pairs], list(shares)),
    }


def _points(difference: Estimate, p_value: float) -> dict[str, float]:
    """A difference from 0 to 100, and its p-value."""
    return {
        "delta": 100 * difference.mean,
        "ci_low": 100 * difference.low,
        "ci_high": 100 * difference.high,
        "p_value": p_value,
    }


def _needed(changes: Sequence[Mapping[str, Clusters]], shares: Sequence[float]) -> dict[str, float]:
    """Samples needed to find the differences of a weighted mean over tasks, and the differences in fidelity.

    Args:
        changes: of each task, by measure; those that all tasks have count.
        shares: weight of each task; they sum to 1.
    """
    needed = {}
    for measure in set.intersection(*map(set, changes)):
        parts = [of_task[measure] for of_task in changes]
        mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
        error = math.hypot(*(share * part.standard_error for share, part in zip(shares, parts, strict=True)))
        needed[f"needed_{measure}"] = significance.samples_needed(
            mean, error, clusters=sum(len(part.sums) for part in parts), samples=sum(part.n for part in parts)
        )
        if measure in FIDELITY:
            p_value = float(significance.p_values([clusters.joint(parts, list(shares))])[0])
            needed |= {f"delta_{measure}": mean, f"p_{measure}": p_value}
    return needed


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """With p-values of the score and of each measure adjusted for the number of the frame's entries."""
    measures = [name for name in FIDELITY if f"p_{name}" in frame]
    return frame.assign(
        p_holm=multiple_testing.holm(frame["p_value"]),
        **{f"p_holm_{name}": multiple_testing.holm(frame[f"p_{name}"]) for name in measures},
    )


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    """With a verdict on each difference."""
    better = frame["delta"].map(lambda delta: "better" if delta > 0 else "worse")
    return frame.assign(verdict=better.where(frame["p_holm"] < SIGNIFICANT, "not distinguishable"))
