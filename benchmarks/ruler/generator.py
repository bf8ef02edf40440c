"""Rows of one RULER task, made for one tokenizer and one length.

Source: NVIDIA/RULER scripts/data/synthetic at c3f5e3b; where the generated rows differ is said in
    `benchmarks.text.fitting` and in `needles`, `words` and `questions` beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from benchmarks.base import Sample
from benchmarks.ruler.needles import example_lines, niah, variable_tracking
from benchmarks.ruler.prompts import TASKS, find_evidence
from benchmarks.ruler.questions import QuestionSet, question_answering
from benchmarks.ruler.words import common_words, frequent_words
from benchmarks.text.fitting import FittedPrompt, PromptRecipe, PromptTokenCounter, fit_window
from benchmarks.text.haystacks import Haystack
from benchmarks.text.token_counts import Window


class RowRecipes(NamedTuple):
    """How one row may be built.

    Attributes:
        recipes: in order of preference.
        facts: what the row's metadata say, whatever its size.
    """

    recipes: Sequence[PromptRecipe]
    facts: dict[str, Any]


@dataclass(frozen=True)
class RulerGenerator:
    """Makes rows of one task; the same fields give the same rows, and fewer rows are a prefix of more.

    Raises:
        ValueError: while generating, if not even the smallest prompt of the task fits.
    """

    name: str
    """Of the task."""
    length: int
    """Tokens of context, question, answer prefix, answer and chat template."""
    template_tokens: int
    """Tokens of the chat template that are taken off the length."""
    window: Window
    """The model's, which prompt, template and answer must fit."""
    label: str
    """Seeds every draw, together with the row."""
    prose: Haystack | None = None
    """For tasks that hide needles in prose."""
    questions: QuestionSet | None = None
    """For qa_1 and qa_2."""

    def samples(self, counter: PromptTokenCounter, wanted: int) -> Iterator[Sample]:
        """Up to `wanted` rows, fewer only where questions run out.

        Raises:
            ValueError: `length` is too short for this task with this tokenizer; says what it takes.
        """
        reserved = TASKS[self.name].max_new_tokens + self.template_tokens
        made, shortest = 0, None
        for row in self._rows(counter):
            if made == wanted:
                return
            fitted = fit_window(row.recipes, counter, self.length - reserved, self.window)
            if isinstance(fitted, FittedPrompt):
                yield self._sample(made, fitted, fitted.tokens + reserved, row.facts)
                made += 1
                continue
            shortest = fitted if shortest is None else min(shortest, fitted)
            if self.questions is None:
                break  # only a question whose own documents do not fit is passed over

        if shortest is not None and not (made and self.questions):
            raise ValueError(
                f"ruler: length={self.length} is too short for {self.name} with this tokenizer, it takes "
                f"{shortest + reserved}; choose a longer length or leave {self.name} out of tasks"
            )

    def _rows(self, counter: PromptTokenCounter) -> Iterator[RowRecipes]:
        """Row after row; without end, except for questions."""
        task = TASKS[self.name]
        if self.questions is not None:
            for number, question in enumerate(self.questions.questions):
                recipes = question_answering(task, f"{self.label}/{number}", question, self.questions)
                yield RowRecipes(recipes, {"questions": self.questions.source, "question": number})
            return
        lines = example_lines(task, f"{self.label}/example", counter) if task.kind == "vt" else 0
        for row in count():
            label = f"{self.label}/{row}"
            if task.kind == "niah":
                facts = {"haystack": self.prose.source} if self.prose else {}
                yield RowRecipes(niah(task, label, self.prose), facts)
            elif task.kind == "vt":
                yield RowRecipes(variable_tracking(task, label, lines), {})
            elif task.kind == "cwe":
                yield RowRecipes(common_words(task, label, self.length), {})
            else:
                yield RowRecipes(frequent_words(task, label, self.length), {})

    def _sample(self, row: int, fitted: FittedPrompt, length: int, facts: dict[str, Any]) -> Sample:
        task, draft = TASKS[self.name], fitted.draft
        evidence = draft.evidence
        if evidence is None:
            evidence = find_evidence(task, draft.context, draft.references)
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
