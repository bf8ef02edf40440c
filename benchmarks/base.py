"""What a benchmark is: samples (a context, a question, references) and a score for a prediction.

A benchmark's file defines one frozen dataclass that inherits `Benchmark`; its fields are its options on the
command line (`benchmark=NAME benchmark.FIELD=VALUE`), and the name of its file or folder is its name. Nothing
else has to be edited to add one. There are no tensors here, and no torch.

The prompt of a sample is `context + question + answer_prefix`: the context may be compressed, the question is
read after it, and the answer prefix stands inside the assistant's turn. Together they are the official prompt
of the suite.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

NumberedRows = Iterable[tuple[int, Mapping[str, Any]]]
"""Rows of a file, each with the number of its line."""


class Tokenizer(Protocol):
    """The two methods of a transformers tokenizer that a benchmark may use to measure and cut text."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of `text`."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """Text of `token_ids`."""


class Draw(NamedTuple):
    """One of several answers that are drawn: the seed, and its number under that seed, from 0."""

    seed: int
    number: int


@dataclass(frozen=True)
class Sample:
    """One question about one context."""

    id: str
    """Unique within a benchmark, stable across runs and machines: `<task>/<row>`."""
    task: str
    """The column of the table that this sample counts for."""
    context: str
    """The text that is read once and may be compressed."""
    question: str
    """Read after compression (before it in query-aware mode)."""
    references: tuple[Any, ...]
    """Accepted answers, JSON values of the type that the official scorer expects (mostly `str`)."""
    answer_prefix: str = ""
    """The beginning of the answer, given to the model; not part of the prediction."""
    max_new_tokens: int = 64
    """The suite's own limit for the answer, in tokens."""
    evidence: tuple[tuple[int, int], ...] = ()
    """Character spans [start, end) of `context` in which the answer stands, where the suite knows them."""
    chat_template: bool = True
    """False where the suite feeds the bare prompt even to chat models."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    min_new_tokens: int = 0
    """Tokens generated before an end-of-sequence token or a stop string counts."""
    truncated: bool = False
    """Whether the suite's own rule cut the context to fit the model's window."""
    weight: float = 1.0
    """Weight of this sample in its task's mean (micro averages, e.g. the number of masks of a cloze row)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer or the report wants to know besides; JSON values."""
    draw: Draw | None = None
    """Which of several drawn answers is asked for: set by a run that draws, never by a suite."""

    @cached_property
    def context_id(self) -> str:
        """Content hash of the context.

        Samples with the same id share a prefill, and are one cluster for error bars.
        """
        return hashlib.sha256(self.context.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def answer_id(self) -> str:
        """Unique within a run: the id, and which of several drawn answers is asked for."""
        return self.id if self.draw is None else f"{self.id} seed {self.draw.seed} draw {self.draw.number}"


class PromptParts(NamedTuple):
    """The three parts of a prompt, which make it when they are joined."""

    context: str
    question: str
    answer_prefix: str


class Prediction(NamedTuple):
    """An answer that was made somewhere, and what it is scored against."""

    sample: Sample
    text: str


class LeaderboardRun(NamedTuple):
    """What kvpress writes as one run.

    Attributes:
        dataset: of its configuration.
        data_dir: of its configuration.
        tasks: ours that are in it.
        metrics: the content of its metrics.json.
    """

    dataset: str
    data_dir: str
    tasks: tuple[str, ...]
    metrics: Any


class Benchmark(ABC):
    """A suite: where its rows come from, how they become prompts, how predictions are scored.

    Subclasses are frozen dataclasses with at least the field `tasks: tuple[str, ...]`.
    """

    version: ClassVar[str]
    """Names this reading of the prompts and the scorer, e.g. "1"; raise it when either changes, so that old
    records are not mixed with new ones."""
    metrics: ClassVar[Mapping[str, str]] = {}
    """Headline metric of each task, the first key of what `score` returns for it (for tables)."""

    tasks: tuple[str, ...]

    @abstractmethod
    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the samples task by task, samples of one context next to each other.

        Args:
            tokenizer: of the model under test; measures and cuts text, never builds tensors.
            window: context window of the model in tokens; longer prompts are cut by the suite's own rule
                (`truncated=True`).
            limit: samples per task, None for all. A smaller limit gives a prefix of what a larger one gives.

        Raises:
            ValueError: unknown task, missing file, or no row: what was looked for, where, and the fix.
        """

    @abstractmethod
    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Metrics in [0, 1] of one prediction, the headline metric first. Never raises on any string."""

    def reference_answer(self, sample: Sample) -> str:
        """An answer as the model should write it; empty if there is none.

        Its likelihood tells how much a compressed context still says. By default the first reference, where
        it is text.
        """
        first = next(iter(sample.references), "")
        return first if isinstance(first, str) else ""

    @abstractmethod
    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Read the rows of an official predictions file.

        Args:
            rows: with their line numbers.
            task: that all rows belong to; None where each names its own.

        Raises:
            ValueError: a row lacks a field; names the line number and the field.
        """

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Named aggregates: name -> groups of tasks.

        The aggregate is the mean over groups of the mean over a group's tasks.
        """
        return {"average": [(task,) for task in self.tasks]}

    def leaderboard(self, means: Mapping[str, float]) -> list[LeaderboardRun]:
        """The runs that kvpress would have written, from the mean score (0 to 100) of each task.

        Raises:
            ValueError: kvpress has no such data set, or metrics that a mean score cannot give.
        """
        raise ValueError(
            f"the kvpress leaderboard takes no {self.name} scores as they are recorded here; "
            "it takes ruler and longbench"
        )

    def headings(self) -> Mapping[str, Sequence[str]]:
        """Groups of tasks for the heads of tables: name -> tasks. No average is taken over them."""
        return {}

    @property
    def name(self) -> str:
        """That of the file, without `.py`, or of the folder: the name on the command line and in tables."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def check_tasks(self, allowed: Collection[str], tasks: Sequence[str] | None = None) -> None:
        """Refuse tasks that do not exist, tasks given twice, and no task at all.

        Args:
            allowed: the tasks that exist.
            tasks: those given, by default the option `tasks`.

        Raises:
            ValueError: names the unknown or repeated tasks, and lists what exists.
        """
        given = self.tasks if tasks is None else tasks
        unknown = [task for task in given if task not in allowed]
        if unknown:
            raise ValueError(self._no_task(", ".join(map(repr, unknown)), allowed))
        if not given:
            raise ValueError(f"{self.name} was given no task; its tasks are {', '.join(allowed)}")
        repeated = sorted({task for task in given if given.count(task) > 1})
        if repeated:
            raise ValueError(f"{self.name} was given {', '.join(map(repr, repeated))} more than once")

    def check_choices(self, **allowed: Sequence[Any]) -> None:
        """Refuse an option whose value is none that exists: `check_choices(split=("dev", "test"))`.

        Raises:
            ValueError: names the option and its value, and lists what exists.
        """
        for option, values in allowed.items():
            given = getattr(self, option)
            if given not in values:
                words = list(map(str, values))
                choices = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
                raise ValueError(f"{self.name}: {option}={given!r} is not known; choose {choices}")

    def check_at_least(self, **least: int) -> None:
        """Refuse a number that is too small: `check_at_least(length=1)`.

        Raises:
            ValueError: names the option, its value and the least one.
        """
        for option, smallest in least.items():
            given = getattr(self, option)
            if given < smallest:
                raise ValueError(f"{self.name}: {option}={given} must be at least {smallest}")

    def check_positive_or_zero(self, **meanings: str) -> None:
        """Refuse a negative option whose 0 means a default: `check_positive_or_zero(shots="the suite's 2")`.

        Raises:
            ValueError: names the option, its value, and what its 0 means.
        """
        for option, meaning in meanings.items():
            given = getattr(self, option)
            if given < 0:
                raise ValueError(f"{self.name}: {option}={given} must be positive, or 0 for {meaning}")

    def task_of_row(
        self,
        row: Mapping[str, Any],
        task: str | None,
        where: str,
        *,
        allowed: Collection[str],
        fields: Sequence[str] = ("task",),
    ) -> str:
        """The task that a row of a predictions file belongs to.

        Args:
            row: of the file.
            task: that was named for the whole file; None to take the row's own.
            where: the row stands, for errors.
            allowed: the tasks that exist.
            fields: of the row that may name its task, the first that it has counting.

        Raises:
            ValueError: the row names no task, or one that does not exist; lists what exists.
        """
        given = task if task is not None else next((row[name] for name in fields if name in row), None)
        if given is None:
            raise ValueError(
                f"{where}: no field {fields[0]!r}; name the task on the command line: {self.name}/TASK; "
                f"its tasks are {', '.join(allowed)}"
            )
        if not isinstance(given, str) or given not in allowed:
            raise ValueError(f"{where}: {self._no_task(repr(given), allowed)}")
        return given

    def _no_task(self, unknown: str, allowed: Iterable[str]) -> str:
        return f"{self.name} has no task {unknown}; its tasks are {', '.join(allowed)}"


def group_by_context(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Runs of neighbouring samples that ask about the same context."""
    group: list[Sample] = []
    for sample in samples:
        if group and group[0].context_id != sample.context_id:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def complete_categories(
    categories: Mapping[str, Sequence[str]], tasks: Sequence[str]
) -> dict[str, Sequence[str]]:
    """What a suite averages over.

    Returns:
        `average`: the chosen tasks; and each category of which all tasks are chosen.
    """
    complete = {name: members for name, members in categories.items() if set(members) <= set(tasks)}
    return {"average": tasks, **complete}
