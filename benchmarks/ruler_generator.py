"""Rows of one RULER task, made for one tokenizer and one length.

Source: NVIDIA/RULER scripts/data/synthetic at c3f5e3b; where the generated rows differ is said in
    `ruler_fit`, `ruler_needles`, `ruler_words` and `ruler_questions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.base import Sample
from benchmarks.haystack import Haystack
from benchmarks.ruler_fit import Fitted, Meter, Recipe, fit
from benchmarks.ruler_needles import example_lines, niah, variable_tracking
from benchmarks.ruler_prompts import TASKS, find_evidence
from benchmarks.ruler_questions import QuestionSet, question_answering
from benchmarks.ruler_words import common_words, frequent_words


@dataclass(frozen=True)
class RulerGenerator:
    """Makes rows of one task; the same fields give the same rows, and fewer rows are a prefix of more.

    Raises:
        ValueError: while generating, if not even the smallest prompt of the task fits.
    """

    name: str
    length: int
    """Tokens of context, question, answer prefix, answer and chat template."""
    template_tokens: int
    label: str
    """Seeds every draw, together with the row."""
    prose: Haystack | None = None
    """For tasks that hide needles in prose."""
    questions: QuestionSet | None = None
    """For qa_1 and qa_2."""

    def samples(self, meter: Meter, wanted: int) -> Iterator[Sample]:
        """Up to `wanted` rows, fewer only where questions run out.

        Raises:
            ValueError: `length` is too short for this task with this tokenizer; says what it takes.
        """
        reserved = TASKS[self.name].max_new_tokens + self.template_tokens
        row, shortest = 0, None
        for recipes, facts in self._recipes(meter):
            if row == wanted:
                return
            fitted = fit(recipes, meter, self.length - reserved)
            if isinstance(fitted, Fitted):
                yield self._sample(row, fitted, fitted.tokens + reserved, facts)
                row += 1
                continue
            shortest = fitted if shortest is None else min(shortest, fitted)
            if (
                self.questions is None
            ):  # a question whose own documents do not fit is passed over, anything else is an error
                break
        if shortest is not None and not (row and self.questions):
            raise ValueError(
                f"ruler: length={self.length} is too short for {self.name} with this tokenizer, it takes {shortest + reserved}; "
                f"choose a longer length or leave {self.name} out of tasks"
            )

    def _recipes(self, meter: Meter) -> Iterator[tuple[list[Recipe], dict[str, Any]]]:
        """Recipes and facts of row after row; without end, except for questions."""
        task = TASKS[self.name]
        if self.questions is not None:
            for number, question in enumerate(self.questions.questions):
                recipes = question_answering(task, f"{self.label}/{number}", question, self.questions)
                yield recipes, {"questions": self.questions.source, "question": number}
            return
        lines = example_lines(task, f"{self.label}/example", meter) if task.kind == "vt" else 0
        row = 0
        while True:
            label = f"{self.label}/{row}"
            if task.kind == "niah":
                yield niah(task, label, self.prose), {"haystack": self.prose.source} if self.prose else {}
            elif task.kind == "vt":
                yield variable_tracking(task, label, lines), {}
            elif task.kind == "cwe":
                yield common_words(task, label, self.length), {}
            else:
                yield frequent_words(task, label, self.length), {}
            row += 1

    def _sample(self, row: int, fitted: Fitted, length: int, facts: dict[str, Any]) -> Sample:
        task, draft = TASKS[self.name], fitted.draft
        evidence = (
            find_evidence(task, draft.context, draft.references) if draft.evidence is None else draft.evidence
        )
        note = {"note": fitted.note} if fitted.note else {}
        return Sample(
            id=f"{self.name}/{row}",
            task=self.name,
            context=draft.context,
            question=draft.question,
            references=draft.references,
            answer_prefix=draft.answer_prefix,
            max_new_tokens=task.max_new_tokens,
            evidence=evidence,
            metadata={"length": length, **facts, **draft.facts, **note},
        )
