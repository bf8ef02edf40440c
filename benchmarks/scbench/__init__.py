"""SCBench: twelve tasks that ask several things about one long context.

Source: Li et al. 2024, arXiv 2412.10319; microsoft/MInference scbench/ at fb56c91 (MIT): eval_utils.py,
    run_scbench.py, compute_scores.py.
Differs: earlier turns with their golden answers stand as text before the question, in one user message, where
    the original renders them as messages of a chat; the cut also leaves room for the longest history; see
    metrics.py for the scores.

mode=multi_turn (the suite's default): turn i is asked after turns 1 … i-1 and their reference answers.
mode=multi_request: every turn is asked alone, directly behind the context. Either way the context is the same
for all turns, so they share a prefill. Rows have id, context, multi_turns [{input, answer, (options, name,
task)}], (lang, repo): hub set microsoft/SCBench, or `path=` with `<task>.jsonl` or `multi_turn_<name>.jsonl`.
No official row was at hand when this was written: types of answers are read as they come.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

from benchmarks.base import (
    Benchmark,
    NumberedRows,
    Prediction,
    PromptParts,
    Sample,
    Tokenizer,
    complete_categories,
)
from benchmarks.scbench.metrics import RULES
from benchmarks.text.fields import field, text_field
from benchmarks.text.sources import Table, embedded_json, hub_table, local_table
from benchmarks.text.spans import find_spans
from benchmarks.text.token_counts import Window, count_tokens
from benchmarks.text.truncation import CutPrompt, cut_middle

CATEGORIES = {
    "string_retrieval": ("scbench_kv", "scbench_prefix_suffix", "scbench_vt"),
    "semantic_retrieval": ("scbench_repoqa", "scbench_qa_eng", "scbench_qa_chn", "scbench_choice_eng"),
    "global_information": ("scbench_many_shot", "scbench_mf", "scbench_summary"),
    "multi_tasking": ("scbench_summary_with_needles", "scbench_repoqa_and_kv"),
}
"""The suite's, each with its tasks."""

TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)

KINDS_OF_TURNS = {
    "scbench_summary_with_needles": ("scbench_summary", "scbench_passkey"),
    "scbench_repoqa_and_kv": ("scbench_repoqa", "scbench_kv"),
}
"""Tasks whose turns are of two kinds; each kind is a column `<task>/<kind>`, as the suite reports them."""

COLUMNS = {
    task: tuple(f"{task}/{kind}" for kind in KINDS_OF_TURNS[task]) if task in KINDS_OF_TURNS else (task,)
    for task in TASKS
}
"""Columns of each task."""

MODES = ("multi_turn", "multi_request")
"""Ways to ask the turns."""

REQUEST_TOKENS = 1000
"""Tokens that are kept free for the question in the mode multi_request, as in the suite."""

_WITH_EVIDENCE = ("scbench_kv", "scbench_prefix_suffix", "scbench_repoqa", "scbench_passkey")

AskedFunctions = Mapping[Any, list[dict[str, str]]]
"""Repository -> name and code ("needle") of the functions asked about in it, in order."""


class RowPrompts(NamedTuple):
    """The prompts of one row.

    Attributes:
        context: that all turns share.
        questions: what follows it for each turn.
    """

    context: str
    questions: list[str]


class TurnReferences(NamedTuple):
    """What a turn is scored against.

    Attributes:
        references: accepted answers.
        facts: what the scorer wants to know besides.
    """

    references: tuple[Any, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class ScbenchBenchmark(Benchmark):
    """Options of SCBench.

    Raises:
        ValueError: an unknown task or mode, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {
        column: RULES[column.split("/")[-1]].metric for columns in COLUMNS.values() for column in columns
    }

    tasks: tuple[str, ...] = TASKS
    mode: str = "multi_turn"
    """"multi_turn" or "multi_request"."""
    max_turns: int = 5
    """Turns of a row that are asked."""
    path: str = ""
    """Folder with <task>.jsonl or multi_turn_<name>.jsonl (or .json, .parquet), or a file; empty: the hub."""
    hub: str = "microsoft/SCBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    max_length: int = 131072
    """Tokens of a prompt and all its answers, as in the suite; less where the model's window is smaller."""
    chat_template: bool = True
    """Whether the prompt is a user message."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(TASKS)
        self.check_choices(mode=MODES)
        self.check_at_least(max_turns=1, max_length=1)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the turns row by row; see `Benchmark.samples`. The limit counts turns."""
        for task in self.tasks:
            what = f"scbench {task}"
            table = self._table(task, what)
            functions = _asked_functions(
                (row, turn) for row in table.rows for turn in turns_of(row, what)[: self.max_turns]
            )
            made = 0
            for number, row in enumerate(table.rows):
                if limit is not None and made >= limit:
                    break
                origin = {**table.origin, "mode": self.mode}
                samples = self._row(task, number, row, tokenizer, window, origin, functions)
                yield from samples if limit is None else samples[: limit - made]
                made += len(samples)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official rule of the turn's kind first, a repaired one where there is one; see metrics.py."""
        return RULES[sample.task.split("/")[-1]].score(sample.references, prediction, sample.metadata)

    def reference_answer(self, sample: Sample) -> str:
        """All variables where all are asked for, else the first reference, numbers as text."""
        wanted = sample.references if sample.task == "scbench_vt" else sample.references[:1]
        return ", ".join(map(str, wanted))

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of prediction_<task>.jsonl: turn_idx, prediction, ground_truth.

        Mixed tasks have the field task too, repoqa has lang, repo and func_name.
        """
        read = list(rows)
        functions = _asked_functions(
            (row, {"name": row.get("func_name"), "answer": row.get("ground_truth")}) for _, row in read
        )
        for line, row in read:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=TASKS, fields=("data_name",))
            column = name
            if kinds := KINDS_OF_TURNS.get(name):
                if row.get("task") not in kinds:
                    raise ValueError(f"{where}: the field 'task' must be one of {', '.join(kinds)}")
                column = f"{name}/{row['task']}"
            text = str(field(row, "prediction", "pred", where=where))
            label = field(row, "ground_truth", "label", where=where)
            facts: dict[str, Any] = {"label_is_text": isinstance(label, str), "turn": row.get("turn_idx")}
            if column.endswith("scbench_repoqa"):
                facts |= {
                    "name": row.get("func_name"),
                    "lang": row.get("lang"),
                    "functions": functions[row.get("repo")],
                }
            references = tuple(label) if isinstance(label, list) else (label,)
            yield Prediction(Sample(f"{column}/{line}", column, "", "", references, metadata=facts), text)

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The mean over the chosen tasks, and over each category that is complete.

        Of two kinds of turns, their mean counts.
        """
        return {
            name: [COLUMNS[task] for task in tasks]
            for name, tasks in complete_categories(CATEGORIES, self.tasks).items()
        }

    def _table(self, task: str, what: str) -> Table:
        """The rows of a task."""
        if not self.path:
            return hub_table(self.hub, task, "test", self.revision, what)
        short = task.replace("scbench_", "multi_turn_")
        return local_table(self.path, (task, short, f"data/{short}", f"data/{task}"), what)

    def _row(
        self,
        task: str,
        number: int,
        row: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
        origin: Mapping[str, Any],
        functions: AskedFunctions,
    ) -> list[Sample]:
        """The turns of one row, which share a context."""
        where = f"scbench {task}, row {number}"
        turns = turns_of(row, where)[: self.max_turns]
        prompts = row_prompts(task, row, turns, self.mode, where)
        limits = [new_tokens(task, turn, where) for turn in turns]
        cut = self._cut(task, prompts, limits, tokenizer, window, where)
        samples = []
        for position, (turn, question, limit) in enumerate(
            zip(turns, prompts.questions, limits, strict=True)
        ):
            kind = str(turn["task"]) if task in KINDS_OF_TURNS else task
            references, facts = _references(kind, turn, row, where)
            if kind == "scbench_repoqa":
                facts = {**facts, "functions": functions[row.get("repo")]}
            evidence = find_spans(cut.context, [str(references[0])]) if kind in _WITH_EVIDENCE else ()
            samples.append(
                Sample(
                    id=f"{task}/{number}/{position}",
                    task=f"{task}/{kind}" if task in KINDS_OF_TURNS else task,
                    context=cut.context,
                    question=question,
                    references=references,
                    max_new_tokens=limit,
                    evidence=evidence,
                    chat_template=self.chat_template,
                    truncated=cut.truncated,
                    metadata={"turn": position, **facts, **origin},
                )
            )
        return samples

    def _cut(
        self,
        task: str,
        prompts: RowPrompts,
        limits: Sequence[int],
        tokenizer: Tokenizer,
        window: int,
        where: str,
    ) -> CutPrompt:
        """The context, cut so that each turn fits.

        Args:
            task: of the row.
            prompts: of its turns.
            limits: tokens of the answer to each.
            tokenizer: of the model under test.
            window: its context window in tokens.
            where: the row stands, for errors.
        """
        # The suite's own length: less all answers, by the mean where turns are of two kinds.
        every = templates()["max_new_tokens"][task]
        turns = len(prompts.questions)
        reserved = sum(every.values()) * turns // 2 if isinstance(every, dict) else every * turns
        reserved += REQUEST_TOKENS if self.mode == "multi_request" else 0

        # What the window leaves: the cut is made behind the first question, the longest must fit.
        counts = [count_tokens(tokenizer, question) for question in prompts.questions]
        behind, behind_tokens = (prompts.questions[0], counts[0]) if self.mode == "multi_turn" else ("", 0)
        shared = [Window(tokenizer, window, limit, self.chat_template) for limit in limits]
        room = min(
            of_turn.room - count + behind_tokens for of_turn, count in zip(shared, counts, strict=True)
        )
        limit = max(1, min(self.max_length - reserved, room))
        while True:
            cut = cut_middle(
                PromptParts(prompts.context, behind, ""),
                shared[0],
                limit,
                where=where,
                count_special=False,
                keep_context=True,
            )
            excess = max(
                of_turn.excess(PromptParts(cut.context, question, ""))
                for of_turn, question in zip(shared, prompts.questions, strict=True)
            )
            if not excess:
                return cut
            limit -= excess  # what was cut has other tokens when it is read


@cache
def templates() -> dict[str, Any]:
    """Templates and answer lengths of the suite, `templates.json`."""
    content: dict[str, Any] = embedded_json(__file__, "templates.json")
    return content


def turns_of(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The turns of a row, each with a text and an answer.

    Raises:
        ValueError: there is none, or one lacks a field.
    """
    turns = field(row, "multi_turns", where=where)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{where}: the field 'multi_turns' must be a list of turns")
    for position, turn in enumerate(turns):
        text_field(turn, "input", where=f"{where}, turn {position}")
        field(turn, "answer", where=f"{where}, turn {position}")
    return turns


def row_prompts(
    task: str, row: Mapping[str, Any], turns: Sequence[Mapping[str, Any]], mode: str, where: str
) -> RowPrompts:
    """The context that all turns share, and what follows it for each turn.

    Raises:
        ValueError: a turn lacks what the template needs.
    """
    fields = [_fields(task, turn, f"{where}, turn {position}") for position, turn in enumerate(turns)]
    head, tail = templates()["first" if mode == "multi_turn" else "context"][task].split("{context}")
    # In multi-request mode the first turn's input officially stands for the prefix.
    prefix = fields[0]["prefix" if mode == "multi_turn" else "input"]
    context = head.replace("{prefix}", prefix) + text_field(row, "context", "input", where=where)
    if mode == "multi_request":
        return RowPrompts(context, [templates()["query"][task].format(**of_turn) for of_turn in fields])

    # Each turn follows those before it, with their reference answers.
    questions = [tail.format(**fields[0])]
    for before, of_turn in zip(turns, fields[1:], strict=False):
        follow_up = templates()["follow_up"][task].format(pre_ans=before["answer"], **of_turn)
        questions.append(questions[-1] + follow_up)
    return RowPrompts(context, questions)


def new_tokens(task: str, turn: Mapping[str, Any], where: str) -> int:
    """Tokens of the answer to a turn.

    Raises:
        ValueError: a turn of a mixed task does not say its kind.
    """
    limit = templates()["max_new_tokens"][task]
    if isinstance(limit, dict):
        if turn.get("task") not in limit:
            raise ValueError(f"{where}: the field 'task' of a turn must be one of {', '.join(limit)}")
        return int(limit[turn["task"]])
    return int(limit)


def _fields(task: str, turn: Mapping[str, Any], where: str) -> dict[str, str]:
    """Values of the template's fields for a turn."""
    text = str(turn["input"])
    fields = {"input": text, "question": text, "prefix": ""}
    if task == "scbench_mf":
        wanted = re.search(r"The .+ is", text)
        if wanted is None:
            raise ValueError(f"{where}: the input says nowhere what to find (The … is)")
        fields["prefix"] = f"What is {wanted[0].lower()[:-3]}?"
    if task == "scbench_choice_eng":
        options = field(turn, "options", where=where)
        if not isinstance(options, list) or len(options) < 4:
            raise ValueError(f"{where}: the field 'options' must be a list of four texts")
        fields |= {f"OPTION_{letter}": str(option) for letter, option in zip("ABCD", options, strict=False)}
    return fields


def _references(kind: str, turn: Mapping[str, Any], row: Mapping[str, Any], where: str) -> TurnReferences:
    """What a turn is scored against.

    Raises:
        ValueError: the answer to a choice is not among the options.
    """
    answer = turn["answer"]
    facts: dict[str, Any] = {"label_is_text": isinstance(answer, str)}
    if kind == "scbench_choice_eng":
        if answer not in turn["options"]:
            raise ValueError(f"{where}: the answer {answer!r} is not among the options")
        return TurnReferences(("ABCD"[turn["options"].index(answer)], answer), facts)
    if kind == "scbench_repoqa":
        facts |= {"name": turn.get("name"), "lang": row.get("lang"), "repo": row.get("repo")}
    return TurnReferences(tuple(answer) if isinstance(answer, list) else (answer,), facts)


def _asked_functions(turns: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> AskedFunctions:
    """The functions that turns ask about, each turn given with its row."""
    functions: dict[Any, list[dict[str, str]]] = defaultdict(list)
    for row, turn in turns:
        if turn.get("name") is not None:
            functions[row.get("repo")].append({"name": str(turn["name"]), "needle": str(turn["answer"])})
    return functions
