"""LongBench v2: 503 hard questions with four choices about texts of 8 thousand to 2 million words.

Source: Bai et al. 2024, arXiv 2412.15204; THUDM/LongBench at 2e00731 (MIT): prompts/0shot.txt, pred.py,
    result.py.
Differs: greedy (the suite samples at temperature 0.1, so that its runs differ from each other); failed
    answers count as wrong, where the suite leaves them out; without chain of thought, which takes two calls.

Rows: data.json (a list) or data.jsonl in the folder `path`, or that file; else the hub set
zai-org/LongBench-v2, split train. Columns: _id, domain, sub_domain, difficulty, length, question, choice_A …
choice_D, answer, context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from benchmarks.base import Benchmark, NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.text.fields import text_field
from benchmarks.text.sources import hub_table, local_table
from benchmarks.text.token_counts import Window
from benchmarks.text.truncation import cut_middle

CONTEXT = "Please read the following text and answer the question below.\n\n<text>\n{context}\n</text>\n\n"
QUESTION = (
    "What is the correct answer to this question: {question}\nChoices:\n"
    "(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
"""What follows the context."""

MAX_NEW_TOKENS = 128
"""Tokens of an answer."""

MAX_LENGTH = 120_000
"""Tokens to which the suite cuts prompts for open models."""

LENGTHS = ("short", "medium", "long")
DIFFICULTIES = ("easy", "hard")
COLUMNS = (("overall",), LENGTHS, DIFFICULTIES)
"""Ways to divide the rows; a table has one of them, since each row stands in it once."""


class ExtractedLetter(NamedTuple):
    """What is found in a response.

    Attributes:
        official: the letter that the official rule finds; None if it finds none.
        alone: the same, if it is not the beginning of a word.
    """

    official: str | None
    alone: str | None


@dataclass(frozen=True)
class LongbenchV2Benchmark(Benchmark):
    """Options of LongBench v2.

    Raises:
        ValueError: an unknown task, or tasks of two divisions.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {task: "accuracy" for division in COLUMNS for task in division}

    tasks: tuple[str, ...] = ("overall",)
    """overall (with the accuracy by difficulty and length beside it); or some of short, medium, long; or of
    easy, hard."""
    path: str = ""
    """A folder with data.json or data.jsonl, or the file; empty: the hub."""
    hub: str = "zai-org/LongBench-v2"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: 120,000 as in the suite, or what the model's
    window leaves."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(self.metrics)
        if not any(set(self.tasks) <= set(division) for division in COLUMNS):
            raise ValueError(
                f"longbench_v2: tasks {', '.join(self.tasks)} overlap; "
                "choose overall, or of short medium long, or of easy hard"
            )
        self.check_positive_or_zero(max_length="the suite's 120,000")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        if self.path:
            table = local_table(self.path, ("data", "train"), "longbench_v2")
        else:
            table = hub_table(self.hub, None, "train", self.revision, "longbench_v2")
        for task in self.tasks:
            chosen = [
                (position, row)
                for position, row in enumerate(table.rows)
                if task == "overall" or task in (row.get("length"), row.get("difficulty"))
            ]
            if not chosen:
                raise ValueError(f"longbench_v2: {table.source} has no row of {task}")
            for position, row in chosen[:limit]:
                yield self._sample(task, position, row, table.origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the letter after "The correct answer is" is right.

        `accuracy` is official. `accuracy_letter_alone` does not read "The correct answer is Both" as B: where
        the two differ, such an answer was counted. `answered`: whether any letter was found. In the column
        `overall`, the accuracy stands also under the row's difficulty and length, as in the suite's table.
        """
        letter = extract(prediction)
        right = float(bool(letter.official) and letter.official in sample.references)
        scores = {
            "accuracy": right,
            "accuracy_letter_alone": float(bool(letter.alone) and letter.alone in sample.references),
            "answered": float(letter.official is not None),
        }
        if sample.task == "overall":
            groups = [sample.metadata.get(name) for name in ("difficulty", "length")]
            scores |= {f"accuracy_{group}": right for group in groups if group}
        return scores

    def reference_answer(self, sample: Sample) -> str:
        """The right letter in the sentence that the question asks for."""
        return f"The correct answer is ({sample.references[0]})"

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the suite's prediction files: response or pred, answer or judge, difficulty, length.

        The response is read again; without one, pred is taken as the letter that was found. A row without
        answer is judged by its flag. A row with an error, or whose pred is null, counts as wrong.
        """
        name = task or "overall"
        self.check_tasks(self.metrics, [name])
        for line, row in rows:
            if name != "overall" and name not in (row.get("length"), row.get("difficulty")):
                continue
            response, letter, answer = (row.get(field) for field in ("response", "pred", "answer"))
            if not {"response", "pred", "error"} & set(row):
                raise ValueError(f"line {line}: the field 'pred' is missing")
            if answer is None and "judge" not in row and "error" not in row:
                raise ValueError(f"line {line}: no field 'answer' or 'judge' to score against")

            # The answer: as it was given, or a sentence around the letter that was found in it.
            known = letter if isinstance(letter, str) and letter in {"A", "B", "C", "D"} else None
            text = response if isinstance(response, str) else ""
            if not isinstance(response, str) and known:
                text = f"The correct answer is ({known})"

            # What is right: as the row says, or the letter itself where it was judged to be right.
            references = (str(answer),) if answer is not None else ()
            if answer is None and row.get("judge") is True and known:
                references = (known,)

            yield Prediction(Sample(f"{name}/{line}", name, "", "", references, metadata=_facts(row)), text)

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The accuracy over all rows.

        A mean of columns of unequal size is named as such, since the suite does not have it.
        """
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
        fields = {name: text_field(row, name, where=where).strip() for name in names}
        if fields["answer"] not in {"A", "B", "C", "D"}:
            raise ValueError(f"{where}: the answer {fields['answer']!r} is not one of A, B, C, D")
        shared = Window(tokenizer, window, MAX_NEW_TOKENS, chat_template=True)
        limit = min(self.max_length or MAX_LENGTH, shared.room)
        parts = PromptParts(CONTEXT.format(**fields), QUESTION.format(**fields), "")
        cut = cut_middle(parts, shared, limit, where=where, count_special=True, jointly=True)
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


def extract(response: str) -> ExtractedLetter:
    """The letter behind "The correct answer is", in brackets or bare."""
    text = response.replace("*", "")
    if in_brackets := re.search(r"The correct answer is \(([A-D])\)", text):
        return ExtractedLetter(in_brackets[1], in_brackets[1])
    bare = re.search(r"The correct answer is ([A-D])", text)
    if not bare:
        return ExtractedLetter(None, None)
    begins_word = re.match(r"\w", text[bare.end() :])
    return ExtractedLetter(bare[1], None if begins_word else bare[1])


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("domain", "sub_domain", "difficulty", "length")}
