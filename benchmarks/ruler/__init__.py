"""RULER: thirteen synthetic tasks of any length.

Needles, variable tracking, word counting and questions among documents.

Source: Hsieh et al. 2024, arXiv 2404.06654; NVIDIA/RULER at c3f5e3b (Apache-2.0).

Rows are generated for the tokenizer of the model under test (`source=generated`), or read as they were made
elsewhere: official `<path>/<task>/validation.jsonl`, or the columns of the hub set simonjegou/ruler. `length`
counts context, question, answer prefix and the tokens to generate, as in the original. The score is the
official one: the share of references found in the answer (any of them for questions), upper and lower case
alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from benchmarks.base import (
    Benchmark,
    LeaderboardRun,
    NumberedRows,
    Prediction,
    PromptParts,
    Sample,
    Tokenizer,
)
from benchmarks.ruler.generator import RulerGenerator
from benchmarks.ruler.prompts import TASKS
from benchmarks.ruler.questions import ORIGINS, load_questions
from benchmarks.ruler.rows import HUB, answers, from_folder, from_rows, from_table
from benchmarks.text.fields import text_field
from benchmarks.text.fitting import PromptTokenCounter
from benchmarks.text.haystacks import KINDS, load_haystack
from benchmarks.text.token_counts import Window

SOURCES = ("generated", "files", "hub")
"""Where rows may come from."""

CATEGORIES = {
    "niah": "Retrieval",
    "vt": "Tracing",
    "cwe": "Aggregation",
    "fwe": "Aggregation",
    "qa": "Questions",
}
"""Kind of task -> the paper's name for its category."""

_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class RulerBenchmark(Benchmark):
    """Options of RULER; the defaults need no network and no file.

    Raises:
        ValueError: an unknown task, source, haystack or origin of questions, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {name: task.metric for name, task in TASKS.items()}

    tasks: tuple[str, ...] = tuple(TASKS)
    length: int = 2048
    """Tokens of a whole prompt and its answer; of the hub set, the configuration (4096, 8192 or 16384)."""
    samples_per_task: int = 500
    """Rows to generate or read; the embedded HotpotQA questions end earlier (61)."""
    seed: int = 42
    source: str = "generated"
    """"generated", "files" (see `path`) or "hub" (downloads simonjegou/ruler)."""
    path: str = ""
    """source=files: a folder with `<task>/validation.jsonl`, or one file in the hub set's columns."""
    haystack: str = "auto"
    """Prose around needles: "essays" (Paul Graham), "walden" (embedded), "auto" (essays if installed), or
    "hub" (downloads the essays)."""
    haystack_path: str = ""
    """A folder of .txt files, a .txt file, or RULER's PaulGrahamEssays.json."""
    questions: str = "embedded"
    """Questions of qa_1 and qa_2: "embedded" (small subsets) or "hub" (downloads SQuAD 2.0 and HotpotQA)."""
    squad_path: str = ""
    """Official SQuAD JSON file for qa_1."""
    hotpotqa_path: str = ""
    """Official HotpotQA distractor JSON file for qa_2."""
    template_tokens: int | None = 0
    """Tokens of the model's chat template, taken off `length` as the original does for its own templates;
    null: as many as it has. Prompts fit the model's window with their template in any case."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(TASKS)
        self.check_at_least(length=1, samples_per_task=1)
        if self.template_tokens is not None:
            self.check_at_least(template_tokens=0)
        self.check_choices(source=SOURCES, haystack=KINDS, questions=ORIGINS)
        if (self.source == "files") != bool(self.path):
            raise ValueError(
                "ruler: source=files and path=FOLDER_OR_FILE go together; "
                + ("give path" if not self.path else "set source=files")
            )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the samples task by task; see `Benchmark.samples`.

        Raises:
            ValueError: the prompts do not fit the window (RULER has no rule to cut them), `length` is too
                short for a task, or rows, texts or questions are missing.
        """
        wanted = self.samples_per_task if limit is None else min(limit, self.samples_per_task)
        if self.source == "generated":
            if self.length > window:
                raise ValueError(
                    f"ruler: length={self.length} exceeds the model's window of {window} tokens; "
                    "choose a shorter length"
                )
            counter = PromptTokenCounter(tokenizer)
            for task in self.tasks:
                shared = Window(tokenizer, window, TASKS[task].max_new_tokens, chat_template=True)
                for sample in self._generator(task, shared).samples(counter, wanted):
                    made = {"source": "generated", "seed": self.seed}
                    yield replace(sample, metadata={**made, **sample.metadata})
            return
        for sample in self._read(wanted):
            Window(tokenizer, window, sample.max_new_tokens, sample.chat_template).check(
                PromptParts(sample.context, sample.question, sample.answer_prefix),
                what=f"ruler: row {sample.id}",
                fix="read shorter rows or use benchmark.source=generated",
            )
            yield sample

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Share of the references contained in the prediction; for questions, whether any is.

        Control characters become line breaks.
        """
        text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
        contained = [str(reference).lower() in text for reference in sample.references]
        metric = self.metrics[sample.task]
        if not contained:
            return {metric: 0.0}
        if metric == "string_match_part":
            return {metric: float(any(contained))}
        return {metric: sum(contained) / len(contained)}

    def leaderboard(self, means: Mapping[str, float]) -> list[LeaderboardRun]:
        """One run for all tasks of a length; `string_match` in percent."""
        metrics = {task: {"string_match": round(mean, 2)} for task, mean in means.items()}
        return [LeaderboardRun("ruler", str(self.length), tuple(means), metrics)]

    def headings(self) -> Mapping[str, Sequence[str]]:
        """The paper's categories of tasks."""
        return {
            name: [task for task in TASKS if CATEGORIES[TASKS[task].kind] == name]
            for name in dict.fromkeys(CATEGORIES.values())
        }

    def reference_answer(self, sample: Sample) -> str:
        """All references where all are asked for, else the first."""
        any_is_enough = self.metrics[sample.task] == "string_match_part"
        return ", ".join(map(str, sample.references[:1] if any_is_enough else sample.references))

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of RULER's prediction files: `pred`, `outputs`, and the task where it is not given."""
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=TASKS)
            text = text_field(row, "pred", where=where)
            sample = Sample(
                id=f"{name}/{line}",
                task=name,
                context=str(row.get("input", "")),
                question="",
                references=answers(row, "outputs" if "outputs" in row else "output", where),
                max_new_tokens=TASKS[name].max_new_tokens,
            )
            yield Prediction(sample, text)

    def _generator(self, task: str, window: Window) -> RulerGenerator:
        """Of the rows of a task that fit a window, with the texts or questions that it needs."""
        in_prose = TASKS[task].haystack == "essay"
        prose = load_haystack(self.haystack, self.haystack_path) if in_prose else None
        questions = None
        if TASKS[task].kind == "qa":
            path = self.squad_path if task == "qa_1" else self.hotpotqa_path
            questions = load_questions(task, self.questions, path)
        label = f"ruler/{self.version}/{self.seed}/{task}/{self.length}"
        template = window.around if self.template_tokens is None else self.template_tokens
        return RulerGenerator(task, self.length, template, window, label, prose, questions)

    def _read(self, wanted: int) -> Iterator[Sample]:
        """Up to `wanted` rows of each task that were made elsewhere."""
        folder = Path(self.path).expanduser()
        if self.path and folder.is_dir():
            for task in self.tasks:
                yield from from_folder(folder, task, wanted)
            return
        rows = from_table(self.path, self.length)
        for task in self.tasks:
            yield from from_rows(rows, task, wanted, self.path or f"hub {HUB} {self.length}")
