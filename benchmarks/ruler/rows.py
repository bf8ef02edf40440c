"""RULER rows that were made elsewhere: the official `validation.jsonl`, old and new, and a set on the hub.

Source: row keys of NVIDIA/RULER scripts/data/synthetic/*.py at c3f5e3b; columns of the hub set
    simonjegou/ruler.
Differs: the hub set leaves the space between question and answer prefix at the end of the question; it is
    moved back to the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import PromptParts, Sample
from benchmarks.ruler.prompts import TASKS, find_evidence, split_prompt
from benchmarks.text.fields import field, text_field
from benchmarks.text.jsonl import read_rows
from benchmarks.text.sources import Rows, file_rows, local_file

HUB = "simonjegou/ruler"
"""The hub set."""

_COLUMNS = ("context", "question", "answer_prefix", "answer", "task", "max_new_tokens")


def from_folder(folder: Path, task: str, limit: int) -> Iterator[Sample]:
    """Official rows of one task, `<folder>/<task>/validation.jsonl`.

    Raises:
        ValueError: no such file, or a row that is not one of this task; names file, line and field.
    """
    file = local_file(
        folder / task / "validation.jsonl",
        f"ruler rows of {task}",
        "path must hold <task>/validation.jsonl; or drop the task",
    )
    for position, (line, row) in enumerate(read_rows(file)):
        if position == limit:
            return
        where = f"{file}, line {line}"
        references = answers(row, "outputs", where)
        prompt = text_field(row, "input", where=where)
        prefix = row.get("answer_prefix", "")
        parts = split_prompt(TASKS[task], prompt + (prefix if isinstance(prefix, str) else ""))
        if parts is None:
            raise ValueError(
                f"{where}: this is not a prompt of {task}: its question or answer prefix was not found"
            )
        yield _sample(
            task,
            position,
            parts,
            references,
            TASKS[task].max_new_tokens,
            {"source": "official rows", "length": row.get("length")},
        )


def from_table(path: str, length: int) -> Rows:
    """Rows in the columns of the hub set.

    Args:
        path: of a file that holds them; "" to read the hub set.
        length: configuration of the hub set.

    Raises:
        ValueError: no such file, an unknown suffix, or columns that are not those of the hub set.
    """
    if not path:
        from datasets import load_dataset

        rows = [dict(row) for row in load_dataset(HUB, str(length), split="test")]
        where = f"hub {HUB} {length}"
    else:
        file = local_file(
            path,
            "ruler rows",
            "path names a folder of official rows, or one file in the hub set's columns",
        )
        rows, where = file_rows(file), str(file)
    for number, row in enumerate(rows, start=1):
        missing = [column for column in _COLUMNS if column not in row]
        if missing:
            raise ValueError(
                f"{where}, row {number}: no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}"
            )
    return rows


def from_rows(rows: Sequence[Mapping[str, Any]], task: str, limit: int, where: str) -> Iterator[Sample]:
    """Samples of one task among the rows of `from_table`.

    Raises:
        ValueError: no row of this task.
    """
    own = [row for row in rows if row["task"] == task]
    if not own:
        present = ", ".join(sorted({str(row["task"]) for row in rows})) or "no rows"
        raise ValueError(f"{where} has no row of {task}; it has {present}")
    for position, row in enumerate(own[:limit]):
        question, prefix = str(row["question"]), str(row["answer_prefix"])
        if question.endswith(" ") and not prefix.startswith(" "):
            question, prefix = question[:-1], " " + prefix
        parts = PromptParts(str(row["context"]), question, prefix)
        references = answers(row, "answer", where)
        yield _sample(task, position, parts, references, int(row["max_new_tokens"]), {"source": where})


def answers(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The answers in a field of a row: a text, or a list of texts that is not empty.

    Raises:
        ValueError: the field is missing or holds something else.
    """
    value = field(row, name, where=where)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: the field {name!r} is not a list of texts")
    return tuple(texts)


def _sample(
    task: str,
    position: int,
    parts: PromptParts,
    references: tuple[str, ...],
    max_new_tokens: int,
    metadata: dict[str, Any],
) -> Sample:
    # A row that was made with a model's template carries that template itself, before the task's first words.
    carries_template = not parts.context.startswith(TASKS[task].head[:20])
    return Sample(
        id=f"{task}/{position}",
        task=task,
        context=parts.context,
        question=parts.question,
        references=references,
        answer_prefix=parts.answer_prefix,
        max_new_tokens=max_new_tokens,
        evidence=find_evidence(TASKS[task], parts.context, references),
        chat_template=not carries_template,
        metadata=metadata,
    )
