"""InfiniteBench: twelve tasks beyond 100 thousand tokens: retrieval, novels, dialogue, code and arithmetic.

Source: Zhang et al. 2024, arXiv 2402.13718; OpenBMB/InfiniteBench at 88b3daa (MIT): src/prompt.py
    (yarn_mistral_templates, which open models use), eval_utils.py, eval_yarn_mistral.py, compute_scores.py.
Differs: longdialogue_qa_eng counts any of a character's names, see `InfinitebenchBenchmark.score`; math_find
    compares a decimal with a whole number instead of failing; answers longer than half of a small window are
    stopped there.

Rows: `<task>.jsonl` in the folder `path`, or the same files of the hub set xinrongzhang2022/InfiniteBench.
Columns: id, context, input, answer, options. Labels keep their types; where a table has made texts of them,
the types are restored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from benchmarks.base import Benchmark, NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.infinitebench import scores
from benchmarks.text.fields import field, text_field
from benchmarks.text.sources import embedded_json, hub_file_table, local_table
from benchmarks.text.spans import Spans, find_spans
from benchmarks.text.token_counts import Window
from benchmarks.text.truncation import cut_middle

MAX_LENGTH = 128 * 1024
"""Tokens to which the suite cuts prompts for open models."""

CHOICES = ("longbook_choice_eng", "code_debug")
"""Tasks whose label is the right option's text and letter."""

NUMBERS = ("code_run", "math_find", "math_calc")
"""Tasks whose labels are numbers."""


@cache
def prompts() -> dict[str, dict[str, Any]]:
    """Prompt in three parts and answer length of each task, `prompts.json`."""
    content: dict[str, dict[str, Any]] = embedded_json(__file__, "prompts.json")["tasks"]
    return content


TASKS = tuple(prompts())
"""In the suite's order."""


@dataclass(frozen=True)
class InfinitebenchBenchmark(Benchmark):
    """Options of InfiniteBench.

    Raises:
        ValueError: an unknown task.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {task: scores.HEADLINE[task] for task in TASKS}

    tasks: tuple[str, ...] = TASKS
    path: str = ""
    """A folder with <task>.jsonl; empty: the hub."""
    hub: str = "xinrongzhang2022/InfiniteBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: 131,072 as in the suite, or what the model's
    window leaves."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(TASKS)
        self.check_positive_or_zero(max_length="the suite's 131,072")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        for task in self.tasks:
            what = f"infinitebench {task}"
            if self.path:
                table = local_table(self.path, (task,), what)
            else:
                table = hub_file_table(self.hub, f"{task}.jsonl", self.revision, what)
            for position, row in enumerate(table.rows[:limit]):
                yield self._sample(task, position, row, table.origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official score of the task.

        longdialogue_qa_eng has two: `accuracy` finds any of the names, in upper case, anywhere in the answer
        (the rule upstream adopted in August 2024); `accuracy_first_name` finds the first name as one
        upper-cased word (the rule of the commit and of the published table, which no name of two words can
        meet).
        """
        return scores.score(sample.task, prediction, sample.references)

    def reference_answer(self, sample: Sample) -> str:
        """The letter and text of a choice of code, all values of an expression, else the first reference.

        Numbers are given as text.
        """
        if sample.task == "code_debug":
            return f"{sample.references[1]}. {sample.references[0]}"
        return str(list(sample.references)) if sample.task == "math_calc" else str(sample.references[0])

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the suite's prediction files: prediction or pred, ground_truth or label."""
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=TASKS)
            text = text_field(row, "prediction", "pred", where=where)
            labels = typed_labels(name, field(row, "ground_truth", "label", where=where), (), where)
            yield Prediction(Sample(f"{name}/{line}", name, "", "", labels), text)

    def _sample(
        self,
        task: str,
        position: int,
        row: Mapping[str, Any],
        origin: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
    ) -> Sample:
        where, template = f"infinitebench {task}, row {position}", prompts()[task]
        fields = template_fields(task, row, where)
        parts = PromptParts(*(template[part].format(**fields) for part in PromptParts._fields))
        labels = typed_labels(task, field(row, "answer", where=where), row.get("options") or (), where)
        max_new_tokens = min(int(template["max_new_tokens"]), max(window // 2, 1))
        shared = Window(tokenizer, window, max_new_tokens, chat_template=False)
        limit = min(self.max_length or MAX_LENGTH, window - max_new_tokens)
        cut = cut_middle(
            parts,
            shared,
            limit,
            where=where,
            count_special=True,
            evidence=find_evidence(task, parts.context, str(labels[0]), fields["input"]),
            jointly=True,
        )
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=cut.context,
            question=cut.question,
            references=labels,
            answer_prefix=cut.answer_prefix,
            max_new_tokens=max_new_tokens,
            evidence=cut.evidence,
            chat_template=False,
            truncated=cut.truncated,
            metadata={"row": row.get("id", position), "max_length": limit, **origin},
        )


def template_fields(task: str, row: Mapping[str, Any], where: str) -> dict[str, str]:
    """What stands in the gaps of a task's prompt.

    Raises:
        ValueError: the row lacks a field, has not four options, or its question has another form than the
            suite's.
    """
    fields = {
        "context": text_field(row, "context", "content", where=where),
        "input": str(row.get("input") or ""),
    }
    if task in CHOICES:
        options = row.get("options")
        if not isinstance(options, list) or len(options) != 4:
            raise ValueError(f"{where}: the field 'options' is not a list of four texts")
        fields |= {f"option_{letter}": str(option) for letter, option in zip("abcd", options, strict=True)}
    elif task == "code_run":
        fields["func_call"] = _first(r"func_[0-9]+\(-?[0-9]+\)", fields["input"], where)
        fields["func"] = fields["func_call"].split("(")[0]
    elif task == "math_find":
        wanted = _first(r"The .+ of", fields["input"], where).lower()[:-3]
        fields["prefix"] = f"What is {wanted} in the following list?"
    return fields


def typed_labels(task: str, label: Any, options: Iterable[str], where: str) -> tuple[Any, ...]:
    """The labels as the scorer expects them: numbers, text and letter of a choice, or texts.

    Args:
        task: of the row.
        label: as the row has it.
        options: of a choice.
        where: the row stands, for errors.

    Raises:
        ValueError: there is no label, one is not a number, or a choice is not among the options.
    """
    labels = list(label) if isinstance(label, list | tuple) else [label]
    if labels and isinstance(labels[0], list):
        labels = labels[0]
    if task in NUMBERS:
        labels = [_number(value, where) for value in labels]
    else:
        labels = [str(value) for value in labels]
    if task in CHOICES and len(labels) == 1:
        named = dict(zip(map(str, options), "ABCD", strict=False))
        if labels[0] not in named:
            raise ValueError(f"{where}: the answer {labels[0]!r} is not among the options")
        labels.append(named[labels[0]])
    if not labels or (task in CHOICES and len(labels) != 2):
        raise ValueError(f"{where}: the label {label!r} is not one of {task}")
    return tuple(labels)


def find_evidence(task: str, context: str, label: str, question: str) -> Spans:
    """Where the answer stands in the three synthetic retrieval tasks; nothing for the others."""
    if task == "passkey":
        sentence = f"The pass key is {label}. Remember it. {label} is the pass key."
    elif task == "number_string":
        sentence = f"The sequence of digits is {label}. Remember it. {label} is the sequence of digits."
    elif task == "kv_retrieval" and (key := re.search(r'Key: "([^"]+)"', question)):
        sentence = f'"{key[1]}": "{label}"'
    else:
        return ()
    return find_spans(context, [sentence])


def _first(pattern: str, question: str, where: str) -> str:
    """What a pattern finds first in a question.

    Raises:
        ValueError: it finds nothing.
    """
    match = re.search(pattern, question)
    if not match:
        raise ValueError(f"{where}: the question {question[:80]!r} holds nothing like {pattern}")
    return match[0]


def _number(value: Any, where: str) -> int | float:
    """A label as a number, which a table may have made text of.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(str(value))
    raise ValueError(f"{where}: the label {value!r} is not a number")
