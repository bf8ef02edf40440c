"""SCBench: twelve tasks that ask several things about one long context, turn after turn or as independent requests.

Source: Li et al. 2024, arXiv 2412.10319; microsoft/MInference scbench/ at fb56c91 (MIT): eval_utils.py,
run_scbench.py, compute_scores.py.
Differs: earlier turns with their golden answers stand as text before the
    question, in one user message, where the original renders them as messages of a chat; the cut also leaves
    room for the longest history; see scbench_metrics.py for the scores.

mode=multi_turn (the suite's default): turn i is asked after turns 1 … i-1 and their reference answers.
mode=multi_request: every turn is asked alone, directly behind the context. Either way the context is the same
for all turns, so they share a prefill. Rows have id, context, multi_turns [{input, answer, (options, name,
task)}], (lang, repo): hub set microsoft/SCBench, or `path=` with `<task>.jsonl` or `multi_turn_<name>.jsonl`.
No official row was at hand when this was written: types of answers are read as they come.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.scbench_metrics import RULES

CATEGORIES = {
    "string_retrieval": ("scbench_kv", "scbench_prefix_suffix", "scbench_vt"),
    "semantic_retrieval": ("scbench_repoqa", "scbench_qa_eng", "scbench_qa_chn", "scbench_choice_eng"),
    "global_information": ("scbench_many_shot", "scbench_mf", "scbench_summary"),
    "multi_tasking": ("scbench_summary_with_needles", "scbench_repoqa_and_kv"),
}
TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)
PARTS = {
    "scbench_summary_with_needles": ("scbench_summary", "scbench_passkey"),
    "scbench_repoqa_and_kv": ("scbench_repoqa", "scbench_kv"),
}
"""Tasks whose turns are of two kinds; each kind is a column `<task>/<kind>` of its own, as the suite reports them."""
COLUMNS = {
    task: tuple(f"{task}/{part}" for part in PARTS[task]) if task in PARTS else (task,) for task in TASKS
}
_WITH_EVIDENCE = ("scbench_kv", "scbench_prefix_suffix", "scbench_repoqa", "scbench_passkey")


@dataclass(frozen=True)
class ScbenchBenchmark(Benchmark):
    """Options of SCBench.

    Raises:
        ValueError: an unknown task or mode, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {
        column: RULES[column.split("/")[-1]][0] for columns in COLUMNS.values() for column in columns
    }

    tasks: tuple[str, ...] = TASKS
    mode: str = "multi_turn"
    """"multi_turn" or "multi_request"."""
    max_turns: int = 5
    """Turns of a row that are asked."""
    path: str = ""
    """Folder with <task>.jsonl or multi_turn_<name>.jsonl (or .json, .parquet), or one file; empty: the hub."""
    hub: str = "microsoft/SCBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    max_length: int = 131072
    """Tokens of a prompt and all its answers, as in the suite; less where the model's window is smaller."""
    chat_template: bool = True
    """Whether the prompt is a user message."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, TASKS, "scbench")
        if self.mode not in ("multi_turn", "multi_request"):
            raise ValueError(f"scbench: mode={self.mode!r} is not known; choose multi_turn or multi_request")
        for name, value in (("max_turns", self.max_turns), ("max_length", self.max_length)):
            if value < 1:
                raise ValueError(f"scbench: {name}={value} must be at least 1")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the turns row by row; see `Benchmark.samples`. The limit counts turns."""
        for task in self.tasks:
            what = f"scbench {task}"
            if self.path:
                short = task.replace("scbench_", "multi_turn_")
                rows, file = sources.local_rows(
                    self.path, (task, short, f"data/{short}", f"data/{task}"), what
                )
                origin = {"source": file.name, "revision": None}
            else:
                rows, commit = sources.hub_rows(self.hub, task, "test", self.revision, what)
                origin = {"source": self.hub, "revision": commit}
            if not rows:
                raise ValueError(f"{what}: {origin['source']} has no row")
            functions = _functions(
                (row, turn) for row in rows for turn in turns_of(row, what)[: self.max_turns]
            )
            made = 0
            for number, row in enumerate(rows):
                if limit is not None and made >= limit:
                    break
                for sample in self._row(
                    task, number, row, tokenizer, window, {**origin, "mode": self.mode}, functions
                ):
                    if limit is None or made < limit:
                        yield sample
                    made += 1

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official rule of the turn's kind first, a repaired one where there is one; see scbench_metrics.py."""
        _, rule = RULES[sample.task.split("/")[-1]]
        return rule(sample.references, prediction, sample.metadata)

    def reference_answer(self, sample: Sample) -> str:
        """All variables where all are asked for, else the first reference, numbers as text."""
        wanted = sample.references if sample.task == "scbench_vt" else sample.references[:1]
        return ", ".join(map(str, wanted))

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of prediction_<task>.jsonl: turn_idx, prediction, ground_truth, and task (of mixed sets), lang, repo, func_name (repoqa)."""
        read = list(rows)
        functions = _functions(
            (row, {"name": row.get("func_name"), "answer": row.get("ground_truth")}) for _, row in read
        )
        for line, row in read:
            where, name = f"line {line}", task if task is not None else row.get("data_name")
            if name not in TASKS:
                given = (
                    "name the task on the command line: scbench/TASK"
                    if name is None
                    else f"scbench has no task {name!r}"
                )
                raise ValueError(f"{where}: {given}; its tasks are {', '.join(TASKS)}")
            if name in PARTS and row.get("task") not in PARTS[name]:
                raise ValueError(f"{where}: the field 'task' must be one of {', '.join(PARTS[name])}")
            column = f"{name}/{row['task']}" if name in PARTS else name
            prediction = sources.field(row, ["prediction", "pred"], where)
            label = sources.field(row, ["ground_truth", "label"], where)
            metadata: dict[str, Any] = {"label_is_text": isinstance(label, str), "turn": row.get("turn_idx")}
            if column.endswith("scbench_repoqa"):
                metadata |= {
                    "name": row.get("func_name"),
                    "lang": row.get("lang"),
                    "functions": functions[row.get("repo")],
                }
            references = tuple(label) if isinstance(label, list) else (label,)
            yield Sample(f"{column}/{line}", column, "", "", references, metadata=metadata), str(prediction)

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The mean over the chosen tasks (of two kinds of turns, their mean counts), and over each category that is complete."""
        named = {name: tasks for name, tasks in CATEGORIES.items() if set(tasks) <= set(self.tasks)}
        return {
            name: [COLUMNS[task] for task in tasks]
            for name, tasks in {"average": self.tasks, **named}.items()
        }

    def _row(
        self,
        task: str,
        number: int,
        row: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
        origin: Mapping[str, Any],
        functions: Mapping[Any, list[dict[str, str]]],
    ) -> list[Sample]:
        where = f"scbench {task}, row {number}"
        turns = turns_of(row, where)[: self.max_turns]
        context, questions = prompts(task, row, turns, self.mode, where)
        limits = [new_tokens(task, turn, where) for turn in turns]
        every = data()["max_new_tokens"][task]
        reserved = sum(every.values()) * len(turns) // 2 if isinstance(every, dict) else every * len(turns)
        reserved += 1000 if self.mode == "multi_request" else 0
        counts = [sources.count_tokens(tokenizer, question) for question in questions]
        cut_behind = questions[0] if self.mode == "multi_turn" else ""
        first = counts[0] if self.mode == "multi_turn" else 0
        room = min(
            window - (64 if self.chat_template else 8) - count + first - limit
            for count, limit in zip(counts, limits, strict=True)
        )
        cut, truncated = sources.cut_middle(
            context, cut_behind, tokenizer, max(1, min(self.max_length - reserved, room))
        )
        samples = []
        for position, (turn, question, limit) in enumerate(zip(turns, questions, limits, strict=True)):
            kind = str(turn["task"]) if task in PARTS else task
            references, facts = _references(kind, turn, row, where)
            if kind == "scbench_repoqa":
                facts = {**facts, "functions": functions[row.get("repo")]}
            samples.append(
                Sample(
                    id=f"{task}/{number}/{position}",
                    task=f"{task}/{kind}" if task in PARTS else task,
                    context=cut,
                    question=question,
                    references=references,
                    max_new_tokens=limit,
                    evidence=sources.find_spans(cut, [str(references[0])]) if kind in _WITH_EVIDENCE else (),
                    chat_template=self.chat_template,
                    truncated=truncated,
                    metadata={"turn": position, **facts, **origin},
                )
            )
        return samples


@cache
def data() -> dict[str, Any]:
    """Templates and answer lengths of the suite, `data/scbench.json`."""
    read: dict[str, Any] = json.loads(
        (Path(__file__).parent / "data" / "scbench.json").read_text(encoding="utf-8")
    )
    return read


def turns_of(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The turns of a row, each with a text and an answer.

    Raises:
        ValueError: there is none, or one lacks a field.
    """
    turns = sources.field(row, ["multi_turns"], where)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{where}: the field 'multi_turns' must be a list of turns")
    for position, turn in enumerate(turns):
        sources.text_field(turn, ["input"], f"{where}, turn {position}")
        sources.field(turn, ["answer"], f"{where}, turn {position}")
    return turns


def prompts(
    task: str, row: Mapping[str, Any], turns: Sequence[Mapping[str, Any]], mode: str, where: str
) -> tuple[str, list[str]]:
    """The context that all turns share, and what follows it for each turn.

    Raises:
        ValueError: a turn lacks what the template needs.
    """
    filled = [_fields(task, turn, f"{where}, turn {position}") for position, turn in enumerate(turns)]
    template = data()["first" if mode == "multi_turn" else "context"][task]
    head, tail = template.split("{context}")
    prefix = (
        filled[0]["prefix"] if mode == "multi_turn" else filled[0]["input"]
    )  # officially so in multi-request mode
    context = head.replace("{prefix}", prefix) + sources.text_field(row, ["context", "input"], where)
    if mode == "multi_request":
        return context, [data()["query"][task].format(**fields) for fields in filled]
    questions = [tail.format(**filled[0])]
    for before, fields in zip(turns, filled[1:], strict=False):
        questions.append(questions[-1] + data()["follow_up"][task].format(pre_ans=before["answer"], **fields))
    return context, questions


def new_tokens(task: str, turn: Mapping[str, Any], where: str) -> int:
    """Tokens of the answer to a turn.

    Raises:
        ValueError: a turn of a mixed task does not say its kind.
    """
    limit = data()["max_new_tokens"][task]
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
        found = re.search(r"The .+ is", text)
        if found is None:
            raise ValueError(f"{where}: the input says nowhere what to find (The … is)")
        fields["prefix"] = f"What is {found[0].lower()[:-3]}?"
    if task == "scbench_choice_eng":
        options = sources.field(turn, ["options"], where)
        if not isinstance(options, list) or len(options) < 4:
            raise ValueError(f"{where}: the field 'options' must be a list of four texts")
        fields |= {f"OPTION_{letter}": str(option) for letter, option in zip("ABCD", options, strict=False)}
    return fields


def _references(
    kind: str, turn: Mapping[str, Any], row: Mapping[str, Any], where: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Accepted answers of a turn, and what the scorer wants to know besides."""
    answer = turn["answer"]
    facts: dict[str, Any] = {"label_is_text": isinstance(answer, str)}
    if kind == "scbench_choice_eng":
        if answer not in turn["options"]:
            raise ValueError(f"{where}: the answer {answer!r} is not among the options")
        return ("ABCD"[turn["options"].index(answer)], answer), facts
    if kind == "scbench_repoqa":
        facts |= {"name": turn.get("name"), "lang": row.get("lang"), "repo": row.get("repo")}
    return (tuple(answer) if isinstance(answer, list) else (answer,)), facts


def _functions(
    asked: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> Mapping[Any, list[dict[str, str]]]:
    """Repository -> the functions asked about in it, in order."""
    found: dict[Any, list[dict[str, str]]] = defaultdict(list)
    for row, turn in asked:
        if turn.get("name") is not None:
            found[row.get("repo")].append({"name": str(turn["name"]), "needle": str(turn["answer"])})
    return found
