"""LongBench v2: 503 hard questions with four choices about texts of 8 thousand to 2 million words.

Source: Bai et al. 2024, arXiv 2412.15204; THUDM/LongBench at 2e00731 (MIT): prompts/0shot.txt, pred.py,
result.py.
Differs: greedy (the suite samples at temperature 0.1, so that its runs differ from each other);
    failed answers count as wrong, where the suite leaves them out; without chain of thought, which takes two
    calls.

Rows: data.json (a list) or data.jsonl in the folder `path`, or that file; else the hub set
zai-org/LongBench-v2, split train. Columns: _id, domain, sub_domain, difficulty, length, question, choice_A …
choice_D, answer, context.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.truncation import cut_middle, room

CONTEXT = "Please read the following text and answer the question below.\n\n<text>\n{context}\n</text>\n\n"
QUESTION = (
    "What is the correct answer to this question: {question}\nChoices:\n(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
MAX_NEW_TOKENS = 128
MAX_LENGTH = 120_000
"""Tokens to which the suite cuts prompts for open models."""
LENGTHS = ("short", "medium", "long")
DIFFICULTIES = ("easy", "hard")
COLUMNS = (("overall",), LENGTHS, DIFFICULTIES)
"""Ways to divide the rows; a table has one of them, since each row stands in it once."""


@dataclass(frozen=True)
class LongbenchV2Benchmark(Benchmark):
    """Options of LongBench v2.

    Raises:
        ValueError: an unknown task, or tasks of two divisions.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {task: "accuracy" for division in COLUMNS for task in division}

    tasks: tuple[str, ...] = ("overall",)
    """overall (with the accuracy by difficulty and length beside it); or some of short, medium, long; or of easy, hard."""
    path: str = ""
    """A folder with data.json or data.jsonl, or the file; empty: the hub."""
    hub: str = "zai-org/LongBench-v2"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: 120,000 as in the suite, or what the model's window leaves."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, tuple(self.metrics), "longbench_v2")
        if not any(set(self.tasks) <= set(division) for division in COLUMNS):
            raise ValueError(
                f"longbench_v2: tasks {', '.join(self.tasks)} overlap; choose overall, or of short medium long, or of easy hard"
            )
        if self.max_length < 0:
            raise ValueError(
                f"longbench_v2: max_length={self.max_length} must be positive, or 0 for the suite's 120,000"
            )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        if self.path:
            rows, file = sources.local_rows(self.path, ("data", "train"), "longbench_v2")
            origin: dict[str, Any] = {"source": file.name, "revision": None}
        else:
            rows, commit = sources.hub_rows(self.hub, None, "train", self.revision, "longbench_v2")
            origin = {"source": self.hub, "revision": commit}
        for task in self.tasks:
            chosen = [
                row
                for row in enumerate(rows)
                if task == "overall" or task in (row[1].get("length"), row[1].get("difficulty"))
            ]
            if not chosen:
                raise ValueError(f"longbench_v2: {origin['source']} has no row of {task}")
            for position, row in chosen[:limit]:
                yield self._sample(task, position, row, origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the letter after "The correct answer is" is right.

        `accuracy` is official. `accuracy_letter_alone` does not read "The correct answer is Both" as B: where
        the two differ, such an
        answer was counted. `answered`: whether any letter was found. In the column `overall`, the accuracy
        stands also under the row's difficulty and length, as in the suite's table.
        """
        letter, alone = extract(prediction)
        right = float(bool(letter) and letter in sample.references)
        scores = {
            "accuracy": right,
            "accuracy_letter_alone": float(bool(alone) and alone in sample.references),
            "answered": float(letter is not None),
        }
        if sample.task == "overall":
            scores |= {
                f"accuracy_{sample.metadata[name]}": right
                for name in ("difficulty", "length")
                if sample.metadata.get(name)
            }
        return scores

    def reference_answer(self, sample: Sample) -> str:
        """The right letter in the sentence that the question asks for."""
        return f"The correct answer is ({sample.references[0]})"

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the suite's prediction files: response or pred, answer or judge, difficulty, length.

        The response is read again; without one, pred is taken as the letter that was found. A row without
        answer is judged by its flag. A row with an error, or whose pred is null, counts as wrong.
        """
        name = task or "overall"
        check_tasks([name], tuple(self.metrics), "longbench_v2")
        for line, row in rows:
            if name != "overall" and name not in (row.get("length"), row.get("difficulty")):
                continue
            response, letter, answer = (row.get(field) for field in ("response", "pred", "answer"))
            if not {"response", "pred", "error"} & set(row):
                raise ValueError(f"line {line}: the field 'pred' is missing")
            if answer is None and "judge" not in row and "error" not in row:
                raise ValueError(f"line {line}: no field 'answer' or 'judge' to score against")
            found = letter if isinstance(letter, str) and letter in {"A", "B", "C", "D"} else None
            text = (
                response if isinstance(response, str) else f"The correct answer is ({found})" if found else ""
            )
            references = (
                (str(answer),)
                if answer is not None
                else (found,)
                if row.get("judge") is True and found
                else ()
            )
            yield Sample(f"{name}/{line}", name, "", "", references, metadata=_facts(row)), text

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The accuracy over all rows; a mean of columns of unequal size is named as such, since the suite does not have it."""
        return {"average" if len(self.tasks) == 1 else "mean_of_columns": [(task,) for task in self.tasks]}

    def _sample(
        self,
        task: str,
        position: int,
        row: Mapping[str, Any],
        origin: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
    ) -> Sample:
        where = f"longbench_v2, row {position}"
        names = ("context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer")
        fields = {name: sources.text_field(row, [name], where).strip() for name in names}
        if fields["answer"] not in {"A", "B", "C", "D"}:
            raise ValueError(f"{where}: the answer {fields['answer']!r} is not one of A, B, C, D")
        limit = self.max_length or min(MAX_LENGTH, room(window, MAX_NEW_TOKENS, True))
        parts = (CONTEXT.format(**fields), QUESTION.format(**fields), "")
        cut = cut_middle(parts, (), tokenizer, limit, name=where, jointly=True)
        return Sample(
            id=f"{task}/{row.get('_id', position)}",
            task=task,
            context=cut.context,
            question=cut.question,
            references=(fields["answer"],),
            max_new_tokens=MAX_NEW_TOKENS,
            truncated=cut.truncated,
            metadata={**_facts(row), "max_length": limit, **origin},
        )


def extract(response: str) -> tuple[str | None, str | None]:
    """The letter that the official rule finds, and the same if it is not the beginning of a word."""
    text = response.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", text)
    if not found:
        found = re.search(r"The correct answer is ([A-D])", text)
        if found and re.match(r"\w", text[found.end() :]):
            return found[1], None
    letter = found[1] if found else None
    return letter, letter


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("domain", "sub_domain", "difficulty", "length")}
