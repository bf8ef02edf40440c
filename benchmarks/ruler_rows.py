"""RULER rows that were made elsewhere: the official `validation.jsonl`, old and new, and the prepared set on the hub.

Source: row keys of NVIDIA/RULER scripts/data/synthetic/*.py at c3f5e3b; columns of the hub set
simonjegou/ruler.
Differs: the hub set leaves the space between question and answer prefix at the end of the
question; it is moved back to the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.base import Sample, local_file
from benchmarks.jsonl import read_rows
from benchmarks.ruler_prompts import TASKS, find_evidence, split_prompt

HUB = "simonjegou/ruler"
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
        references = texts(row, "outputs", where)
        if not isinstance(row.get("input"), str):
            raise ValueError(f"{where}: the field 'input' is missing or not text")
        prefix = row.get("answer_prefix", "")
        parts = split_prompt(TASKS[task], row["input"] + (prefix if isinstance(prefix, str) else ""))
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


def from_table(path: str, length: int) -> list[dict[str, Any]]:
    """Rows in the columns of the hub set: all of a `.jsonl` or `.parquet` file, or, with no path, of the hub set's config `length`.

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
            "path names a folder of official rows, or one .jsonl or .parquet file in the hub set's columns",
        )
        where = str(file)
        if file.suffix == ".parquet":
            import pandas

            rows = pandas.read_parquet(file).to_dict("records")
        elif file.suffix == ".jsonl":
            rows = [row for _, row in read_rows(file)]
        else:
            raise ValueError(
                f"{where}: rows are read from .jsonl and .parquet files, not {file.suffix or 'files without a suffix'}"
            )
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
        parts = (str(row["context"]), question, prefix)
        yield _sample(
            task, position, parts, texts(row, "answer", where), int(row["max_new_tokens"]), {"source": where}
        )


def texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The answers in a field of a row: a non-empty list of texts.

    Raises:
        ValueError: the field is missing or holds something else.
    """
    value = row.get(name)
    found = (
        [value]
        if isinstance(value, str)
        else list(value)
        if isinstance(value, Sequence) or hasattr(value, "tolist")
        else []
    )  # type: ignore[arg-type]
    if not found or not all(isinstance(answer, str) for answer in found):
        raise ValueError(f"{where}: the field {name!r} is missing or not a list of texts")
    return tuple(found)


def _sample(
    task: str,
    position: int,
    parts: tuple[str, str, str],
    references: tuple[str, ...],
    max_new_tokens: int,
    metadata: dict[str, Any],
) -> Sample:
    context, question, answer_prefix = parts
    return Sample(
        id=f"{task}/{position}",
        task=task,
        context=context,
        question=question,
        references=references,
        answer_prefix=answer_prefix,
        max_new_tokens=max_new_tokens,
        evidence=find_evidence(TASKS[task], context, references),
        chat_template=context.startswith(
            TASKS[task].head[:20]
        ),  # a row made with a model template carries that template itself
        metadata=metadata,
    )
