"""What a command will do: contexts, variants, answers that are there and answers that are left. Needs no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.base import Sample
from longpress.models.loading import KnownModel

Item = tuple[list[Sample], list[int]]
"""Samples that share a context, and the variants by index that are missing for any of them."""


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
        keys: per sample id, the key of the record under each variant.
        done: keys that have a record.
        alone: whether every variant reads the context by itself.
    """

    known: KnownModel
    benchmark: str
    folder: Path
    n_variants: int
    query_aware: bool
    groups: Sequence[Sequence[Sample]]
    keys: Mapping[str, Sequence[str]]
    done: AbstractSet[str]
    alone: bool = False

    @property
    def answers(self) -> int:
        """All answers: samples × variants."""
        return sum(map(len, self.groups)) * self.n_variants

    @property
    def left(self) -> int:
        """Answers that have no record."""
        return sum(
            key not in self.done for group in self.groups for sample in group for key in self.keys[sample.id]
        )

    @property
    def prefills(self) -> int:
        """Contexts still to read; in query-aware mode once per question, and once per variant where each reads alone."""
        return sum(
            (len(asked) if self.query_aware else 1) * (len(missing) if self.alone else 1)
            for asked, missing in self.work()
        )

    def work(self) -> list[Item]:
        """What is missing, context by context."""
        items = []
        for group in self.groups:
            missing = [
                at
                for at in range(self.n_variants)
                if any(self.keys[sample.id][at] not in self.done for sample in group)
            ]
            asked = [
                sample for sample in group if any(self.keys[sample.id][at] not in self.done for at in missing)
            ]
            if asked:
                items.append((asked, missing))
        return items

    def shard(self, index: int, count: int) -> Plan:
        """Every `count`-th context from `index` on: what is done already does not move contexts between shards."""
        return replace(self, groups=self.groups[index::count])

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
