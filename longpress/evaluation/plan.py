"""What a command will do: contexts, variants, answers that are there and answers that are left.

A plan needs no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.base import Sample
from longpress.models.loading import KnownModel


class Work(NamedTuple):
    """What is missing of one context.

    Attributes:
        samples: those that ask about it and lack an answer.
        variants: numbers of the variants, in the order of the table, under which any of them lacks one.
    """

    samples: Sequence[Sample]
    variants: Sequence[int]


@dataclass(frozen=True, eq=False)
class Plan:
    """One job.

    Attributes:
        known: its model, not loaded.
        benchmark: its name.
        folder: of its records.
        n_variants: lines of its table.
        query_aware: whether every question needs a prefill of its own.
        groups: all its samples, those of one context together.
        keys: per `Sample.answer_id`, the key of the record under each variant.
        done: keys that have a record.
        mapped: ids of the contexts whose kept tokens are recorded.
        reads_per_variant: whether every variant reads the context by itself.
    """

    known: KnownModel
    benchmark: str
    folder: Path
    n_variants: int
    query_aware: bool
    groups: Sequence[Sequence[Sample]]
    keys: Mapping[str, Sequence[str]]
    done: AbstractSet[str]
    mapped: AbstractSet[str] = frozenset()
    reads_per_variant: bool = False

    @property
    def answers(self) -> int:
        """All answers: samples × variants; every drawn answer is a sample."""
        return sum(map(len, self.groups)) * self.n_variants

    @property
    def left(self) -> int:
        """Answers that have no record."""
        keys = (key for group in self.groups for sample in group for key in self.keys[sample.answer_id])
        return sum(key not in self.done for key in keys)

    @property
    def prefills(self) -> int:
        """Contexts still to read.

        In query-aware mode one per question, and one per variant where each reads by itself.
        """
        return sum(
            (len(samples) if self.query_aware else 1) * (len(variants) if self.reads_per_variant else 1)
            for samples, variants in self.work()
        )

    def work(self) -> list[Work]:
        """What is missing, context by context."""
        missing = []
        for group in self.groups:
            variants = [
                variant
                for variant in range(self.n_variants)
                if any(self._is_missing(sample, variant) for sample in group)
            ]
            samples = [
                sample for sample in group if any(self._is_missing(sample, variant) for variant in variants)
            ]
            if samples:
                missing.append(Work(samples, variants))
        return missing

    def shard(self, index: int, count: int) -> Plan:
        """Every `count`-th context from `index` on, done or not, so that no context moves between shards."""
        return replace(self, groups=self.groups[index::count])

    def _is_missing(self, sample: Sample, variant: int) -> bool:
        return self.keys[sample.answer_id][variant] not in self.done

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.known.name} on {self.benchmark}: {self.prefills} prefills, {self.n_variants} variants, "
            f"{self.left} of {self.answers} answers left, into {self.folder}"
        )


def describe(plans: Iterable[tuple[str, Plan]]) -> str:
    """The plan of a sweep: a line per job, labelled, and the sum."""
    listed = list(plans)
    lines = [f"  {label or 'this run'}: {plan}" for label, plan in listed]
    prefills, left = sum(plan.prefills for _, plan in listed), sum(plan.left for _, plan in listed)
    jobs = f"{len(listed)} job{'s' if len(listed) != 1 else ''}"
    return "\n".join([f"plan: {jobs}, {prefills} prefills, {left} answers left", *lines])
