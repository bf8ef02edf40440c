"""RULER: thirteen synthetic tasks of any length: needles, variable tracking, word counting, questions among documents.

Source: Hsieh et al. 2024, arXiv 2404.06654; NVIDIA/RULER at c3f5e3b (Apache-2.0).

Rows are generated for the tokenizer of the model under test (`source=generated`), or read as they were made
elsewhere: official `<path>/<task>/validation.jsonl`, or the columns of the hub set simonjegou/ruler. `length`
counts context, question, answer prefix and the tokens to generate, as in the original. The score is the
official one: the share of references found in the answer (any of them for questions), upper and lower case
alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import haystack, ruler_questions, ruler_rows
from benchmarks.base import Benchmark, LeaderboardRun, Sample, Tokenizer, check_tasks
from benchmarks.ruler_fit import Meter
from benchmarks.ruler_generator import RulerGenerator
from benchmarks.ruler_prompts import TASKS

SOURCES = ("generated", "files", "hub")
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
    """Tokens of a whole prompt and its answer; of the hub set, the configuration to read (4096, 8192 or 16384)."""
    samples_per_task: int = 500
    """Rows to generate or read; the embedded HotpotQA questions end earlier (61)."""
    seed: int = 42
    source: str = "generated"
    """"generated", "files" (see `path`) or "hub" (downloads simonjegou/ruler)."""
    path: str = ""
    """source=files: a folder with `<task>/validation.jsonl`, or one .jsonl or .parquet file in the hub set's columns."""
    haystack: str = "auto"
    """Prose around needles: "essays" (Paul Graham), "walden" (embedded), "auto" (essays if installed), "hub" (downloads)."""
    haystack_path: str = ""
    """A folder of .txt files, a .txt file, or RULER's PaulGrahamEssays.json."""
    questions: str = "embedded"
    """Questions of qa_1 and qa_2: "embedded" (small subsets) or "hub" (downloads SQuAD 2.0 and HotpotQA)."""
    squad_path: str = ""
    """Official SQuAD JSON file for qa_1."""
    hotpotqa_path: str = ""
    """Official HotpotQA distractor JSON file for qa_2."""
    template_tokens: int = 0
    """Tokens of the model's chat template, taken off `length` as the original does for its model templates."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, tuple(TASKS), "ruler")
        for name, value, least in (
            ("length", self.length, 1),
            ("samples_per_task", self.samples_per_task, 1),
            ("template_tokens", self.template_tokens, 0),
        ):
            if value < least:
                raise ValueError(f"ruler: {name}={value} must be at least {least}")
        for name, choice, known in (
            ("source", self.source, SOURCES),
            ("haystack", self.haystack, haystack.KINDS),
            ("questions", self.questions, ruler_questions.ORIGINS),
        ):
            if choice not in known:
                raise ValueError(f"ruler: {name}={choice!r} is not known; choose one of {', '.join(known)}")
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
                    f"ruler: length={self.length} exceeds the model's window of {window} tokens; choose a shorter length"
                )
            yield from self._generated(Meter(tokenizer), wanted)
            return
        folder = Path(self.path).expanduser()
        if self.path and folder.is_dir():
            read = (ruler_rows.from_folder(folder, task, wanted) for task in self.tasks)
        else:
            rows = ruler_rows.from_table(self.path, self.length)
            where = self.path or f"hub {ruler_rows.HUB} {self.length}"
            read = (ruler_rows.from_rows(rows, task, wanted, where) for task in self.tasks)
        for samples in read:
            for sample in samples:
                self._check_window(sample, tokenizer, window)
                yield sample

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Share of the references contained in the prediction; for questions, whether any is. Control characters become line breaks."""
        text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
        found = [str(reference).lower() in text for reference in sample.references]
        metric = self.metrics[sample.task]
        if not found:
            return {metric: 0.0}
        return {metric: float(any(found)) if metric == "string_match_part" else sum(found) / len(found)}

    def leaderboard(self, means: Mapping[str, float]) -> list[LeaderboardRun]:
        """One run for all tasks of a length; `string_match` in percent."""
        metrics = {task: {"string_match": round(mean, 2)} for task, mean in means.items()}
        return [LeaderboardRun("ruler", str(self.length), tuple(means), metrics)]

    def headings(self) -> Mapping[str, Sequence[str]]:
        """The paper's categories of tasks."""
        names = {
            "niah": "Retrieval",
            "vt": "Tracing",
            "cwe": "Aggregation",
            "fwe": "Aggregation",
            "qa": "Questions",
        }
        return {
            name: [task for task in TASKS if names[TASKS[task].kind] == name]
            for name in dict.fromkeys(names.values())
        }

    def reference_answer(self, sample: Sample) -> str:
        """All references where all are asked for, else the first."""
        wanted = (
            sample.references[:1] if self.metrics[sample.task] == "string_match_part" else sample.references
        )
        return ", ".join(map(str, wanted))

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of RULER's prediction files: `pred`, `outputs`, and the task from the row where it is not given."""
        for line, row in rows:
            name = task if task is not None else row.get("task")
            if name is None:
                raise ValueError(
                    f"line {line}: no field 'task'; name it on the command line: ruler/TASK with one of {', '.join(TASKS)}"
                )
            if name not in TASKS:
                raise ValueError(f"line {line}: ruler has no task {name!r}; its tasks are {', '.join(TASKS)}")
            if not isinstance(row.get("pred"), str):
                raise ValueError(f"line {line}: the field 'pred' is missing or not text")
            references = ruler_rows.texts(row, "outputs" if "outputs" in row else "output", f"line {line}")
            text = str(row.get("input", ""))
            yield (
                Sample(
                    f"{name}/{line}", name, text, "", references, max_new_tokens=TASKS[name].max_new_tokens
                ),
                row["pred"],
            )

    def _generated(self, meter: Meter, wanted: int) -> Iterator[Sample]:
        for task in self.tasks:
            prose = (
                haystack.load(self.haystack, self.haystack_path) if TASKS[task].haystack == "essay" else None
            )
            questions = None
            if TASKS[task].kind == "qa":
                path = self.squad_path if task == "qa_1" else self.hotpotqa_path
                questions = ruler_questions.load(task, self.questions, path)
            label = f"ruler/{self.version}/{self.seed}/{task}/{self.length}"
            generator = RulerGenerator(task, self.length, self.template_tokens, label, prose, questions)
            for sample in generator.samples(meter, wanted):
                yield replace(sample, metadata={"source": "generated", "seed": self.seed, **sample.metadata})

    def _check_window(self, sample: Sample, tokenizer: Tokenizer, window: int) -> None:
        prompt = sample.context + sample.question + sample.answer_prefix
        if len(prompt.encode()) + sample.max_new_tokens <= window:
            return  # a token holds at least one byte
        tokens = len(tokenizer.encode(prompt, add_special_tokens=False)) + sample.max_new_tokens
        if tokens > window:
            raise ValueError(
                f"ruler: row {sample.id} takes {tokens} tokens, the model's window has {window}, and RULER has no rule to cut prompts; "
                "read shorter rows or use source=generated"
            )
