"""BABILong: facts of the bAbI tasks hidden in book text; where things and people are, who gave what to whom.

Source: Kuratov et al. 2024, arXiv 2406.10149; booydar/babilong at 7a6efee (Apache-2.0): prompts.py,
    metrics.py, run_model_on_babilong.py.
Differs: the answer is scored twice, see `BabilongBenchmark.score`; supporting facts are found again in the
    text (qa1, qa4, qa5).

Rows have the columns input, question, target: a local folder with `<length>/<task>.jsonl` (or .json,
.parquet, .csv), or the hub sets RMT-team/babilong (100 rows a task) and RMT-team/babilong-1k-samples (configs
are lengths, splits are tasks). Rows longer than the model's window are refused: the suite has no rule to cut
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from benchmarks.babilong.evidence import find_facts
from benchmarks.base import Benchmark, NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.text.fields import text_field
from benchmarks.text.sources import Table, embedded_json, hub_table, local_table
from benchmarks.text.token_counts import Window

TASKS = tuple(f"qa{number}" for number in range(1, 21))
"""All tasks that can be scored."""

PROMPTED = TASKS[:10]
"""Tasks for which the suite has prompts."""

HEADLINE = TASKS[:5]
"""Tasks of the suite's headline."""

LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M", "10M")
"""Nominal lengths of contexts; 0k has the facts alone."""

MAX_NEW_TOKENS = 20
"""Tokens of an answer."""


@dataclass(frozen=True)
class BabilongBenchmark(Benchmark):
    """Options of BABILong.

    Raises:
        ValueError: an unknown task or length.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(TASKS, "accuracy")

    tasks: tuple[str, ...] = HEADLINE
    length: str = "4k"
    """Nominal tokens of a context: 0k (facts alone), 1k … 10M."""
    path: str = ""
    """A folder with `<length>/<task>.jsonl`, or one file; empty: the hub."""
    hub: str = "RMT-team/babilong"
    """Hub data set; RMT-team/babilong-1k-samples has more rows a task."""
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    chat_template: bool = True
    """Whether the prompt is a user message (the suite runs models both ways)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(PROMPTED)
        self.check_choices(length=LENGTHS)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        shared = Window(tokenizer, window, MAX_NEW_TOKENS, self.chat_template)
        for task in self.tasks:
            what = f"babilong {task} {self.length}"
            table = self._table(task, what)
            for position, row in enumerate(table.rows[:limit]):
                sample = self._sample(task, position, row, table.origin)
                shared.check(
                    PromptParts(sample.context, sample.question, sample.answer_prefix),
                    what=f"{what}, row {position},",
                    fix="choose a shorter length",
                )
                yield sample

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the answer names the target and no other label; labels of the question do not count.

        `accuracy` is the official rule: the first sentence, before "<context>" and "<example>", lower-cased,
        labels found anywhere in it. Two of its oddities lose right answers, so that `accuracy_repaired`
        differs: it also cuts at "Question" (officially searched with a capital letter after lower-casing,
        hence never found), and finds labels as whole words ("none" holds "one").
        """
        if not sample.references:
            return {"accuracy": 0.0, "accuracy_repaired": 0.0}
        sentence = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
        question = str(sample.metadata.get("question", sample.question)).lower()
        labels = [label.lower() for label in prompts()["labels"][sample.task]]
        official = {label for label in labels if label in sentence and label not in question}
        repaired = _whole_words(sentence.split("question")[0], labels) - _whole_words(question, labels)
        wanted = _labels_of_target(str(sample.references[0]))
        return {"accuracy": float(official == wanted), "accuracy_repaired": float(repaired == wanted)}

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the suite's prediction tables: target, question, output (empty: nothing was said)."""
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=TASKS)
            if "output" not in row:
                raise ValueError(f"{where}: the field 'output' is missing")
            target = text_field(row, "target", where=where)
            question = text_field(row, "question", where=where)
            output = row["output"] if isinstance(row["output"], str) else ""
            facts = {"question": question}
            yield Prediction(Sample(f"{name}/{line}", name, "", question, (target,), metadata=facts), output)

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The mean over the chosen tasks, and the suite's headline, the mean over qa1 … qa5."""
        return {"average": [(task,) for task in self.tasks], "qa1-qa5": [(task,) for task in HEADLINE]}

    def _table(self, task: str, what: str) -> Table:
        """The rows of a task."""
        if not self.path:
            return hub_table(self.hub, self.length, task, self.revision, what)
        names = (f"{self.length}/{task}", f"{task}/{self.length}", f"data/{task}/{self.length}", task)
        return local_table(self.path, names, what)

    def _sample(self, task: str, position: int, row: Mapping[str, Any], origin: Mapping[str, Any]) -> Sample:
        where = f"babilong {task}, row {position}"
        text = text_field(row, "input", where=where).strip()
        question = text_field(row, "question", where=where)
        target = text_field(row, "target", where=where)
        instruction = prompts()["template"].format(**prompts()["prompts"][task])
        head, tail = f"{instruction}\n\n<context>\n".lstrip(), "\n</context>\n\n"
        facts = find_facts(task, text, question, target)
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=head + text + tail,
            question=f"Question: {question}".strip(),
            references=(target,),
            max_new_tokens=MAX_NEW_TOKENS,
            evidence=tuple((len(head) + start, len(head) + end) for start, end in facts),
            chat_template=self.chat_template,
            metadata={"question": question, "length": self.length, **origin},
        )


@cache
def prompts() -> dict[str, Any]:
    """Prompts and labels of the suite, `prompts.json`."""
    content: dict[str, Any] = embedded_json(__file__, "prompts.json")
    return content


def _labels_of_target(target: str) -> set[str]:
    """The labels of a target; only qa8 has several, while a target of qa19 ("n,e") is one label."""
    several = "," in target and len(target) > 3
    return set(target.lower().split(",")) if several else {target.lower()}


def _whole_words(text: str, labels: Iterable[str]) -> set[str]:
    """The labels that stand in a text as words of their own."""
    return {label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)}
