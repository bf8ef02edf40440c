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

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import infinitebench_scores, sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.truncation import cut_middle, room

MAX_LENGTH = 128 * 1024
"""Tokens to which the suite cuts prompts for open models."""
CHOICES = ("longbook_choice_eng", "code_debug")
"""Tasks whose label is the right option's text and letter."""


@cache
def prompts() -> dict[str, dict[str, Any]]:
    """Prompt in three parts and answer length of each task, `data/infinitebench.json`."""
    read: dict[str, dict[str, Any]] = json.loads(
        (Path(__file__).parent / "data" / "infinitebench.json").read_text(encoding="utf-8")
    )["tasks"]
    return read


TASKS = tuple(prompts())


@dataclass(frozen=True)
class InfinitebenchBenchmark(Benchmark):
    """Options of InfiniteBench.

    Raises:
        ValueError: an unknown task.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {task: infinitebench_scores.HEADLINE[task] for task in TASKS}

    tasks: tuple[str, ...] = TASKS
    path: str = ""
    """A folder with <task>.jsonl; empty: the hub."""
    hub: str = "xinrongzhang2022/InfiniteBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: 131,072 as in the suite, or what the model's window leaves."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, TASKS, "infinitebench")
        if self.max_length < 0:
            raise ValueError(
                f"infinitebench: max_length={self.max_length} must be positive, or 0 for the suite's 131,072"
            )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        for task in self.tasks:
            what = f"infinitebench {task}"
            if self.path:
                rows, file = sources.local_rows(self.path, (task,), what)
                origin: dict[str, Any] = {"source": file.name, "revision": None}
            else:
                file, commit = sources.hub_file(self.hub, f"{task}.jsonl", self.revision, what)
                rows, origin = sources.file_rows(file), {"source": self.hub, "revision": commit}
            if not rows:
                raise ValueError(f"{what}: {origin['source']} has no row")
            for position, row in enumerate(rows[:limit]):
                yield self._sample(task, position, row, origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official score of the task.

        longdialogue_qa_eng has two: `accuracy` finds any of the names, in upper case, anywhere in the answer
        (the rule upstream adopted in August 2024); `accuracy_first_name` finds the first name as one
        upper-cased word (the rule of the commit and of the published table, which no name of two words can
        meet).
        """
        return infinitebench_scores.score(sample.task, prediction, sample.references)

    def reference_answer(self, sample: Sample) -> str:
        """The letter and text of a choice of code, all values of an expression, else the first reference, numbers as text."""
        if sample.task == "code_debug":
            return f"{sample.references[1]}. {sample.references[0]}"
        return str(list(sample.references)) if sample.task == "math_calc" else str(sample.references[0])

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the suite's prediction files: prediction or pred, ground_truth or label."""
        for line, row in rows:
            where = f"line {line}"
            name = task if task is not None else row.get("task")
            if name is None:
                raise ValueError(
                    f"{where}: no field 'task'; name it on the command line: infinitebench/TASK with one of {', '.join(TASKS)}"
                )
            check_tasks([name], TASKS, f"{where}: infinitebench")
            prediction = sources.text_field(row, ["prediction", "pred"], where)
            label = sources.field(row, ["ground_truth", "label"], where)
            yield Sample(f"{name}/{line}", name, "", "", typed_labels(name, label, (), where)), prediction

    def _sample(
        self,
        task: str,
        position: int,
        row: Mapping[str, Any],
        origin: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
    ) -> Sample:
        where, fixed = f"infinitebench {task}, row {position}", prompts()[task]
        fields = fill(task, row, where)
        parts = [fixed[part].format(**fields) for part in ("context", "question", "answer_prefix")]
        labels = typed_labels(task, sources.field(row, ["answer"], where), row.get("options") or (), where)
        answer = min(int(fixed["max_new_tokens"]), max(window // 2, 1))
        limit = self.max_length or min(MAX_LENGTH, room(window, answer, False))
        evidence = find_evidence(task, parts[0], str(labels[0]), fields["input"])
        cut = cut_middle((parts[0], parts[1], parts[2]), evidence, tokenizer, limit, name=where, jointly=True)
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=cut.context,
            question=cut.question,
            references=labels,
            answer_prefix=cut.answer_prefix,
            max_new_tokens=answer,
            evidence=cut.evidence,
            chat_template=False,
            truncated=cut.truncated,
            metadata={"row": row.get("id", position), "max_length": limit, **origin},
        )


def fill(task: str, row: Mapping[str, Any], where: str) -> dict[str, str]:
    """What stands in the gaps of a task's prompt.

    Raises:
        ValueError: the row lacks a field, has not four options, or its question has another form than the
            suite's.
    """
    fields = {
        "context": sources.text_field(row, ["context", "content"], where),
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
        fields["prefix"] = (
            f"What is {_first(r'The .+ of', fields['input'], where).lower()[:-3]} in the following list?"
        )
    return fields


def typed_labels(task: str, label: Any, options: Iterable[str], where: str) -> tuple[Any, ...]:
    """The labels as the scorer expects them: numbers for code_run, math_find and math_calc, text and letter of a choice, else texts.

    Raises:
        ValueError: there is no label, one is not a number, or a choice is not among the options.
    """
    labels = list(label) if isinstance(label, list | tuple) else [label]
    if labels and isinstance(labels[0], list):
        labels = labels[0]
    if task in ("code_run", "math_find", "math_calc"):
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


def find_evidence(task: str, context: str, label: str, question: str) -> tuple[tuple[int, int], ...]:
    """Where the answer stands in the three synthetic retrieval tasks; nothing for the others."""
    if task == "passkey":
        return sources.find_spans(
            context, [f"The pass key is {label}. Remember it. {label} is the pass key."]
        )
    if task == "number_string":
        return sources.find_spans(
            context, [f"The sequence of digits is {label}. Remember it. {label} is the sequence of digits."]
        )
    if task == "kv_retrieval" and (key := re.search(r'Key: "([^"]+)"', question)):
        return sources.find_spans(context, [f'"{key[1]}": "{label}"'])
    return ()


def _first(pattern: str, text: str, where: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"{where}: the question {text[:80]!r} holds nothing like {pattern}")
    return found[0]


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(str(value))
    raise ValueError(f"{where}: the label {value!r} is not a number")
