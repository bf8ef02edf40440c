"""LongBench and LongBench-E: 21 tasks in English, Chinese and code: questions, summaries, few-shot examples, retrieval, completion.

Source: Bai et al. 2023, arXiv 2308.14508; THUDM/LongBench at 2e00731 (MIT): LongBench/{pred,eval,metrics}.py,
config/*.json.
Differs: the answer prefix ("Answer:") opens the assistant's turn (`assistant_prefix=false`
    leaves it in the user's, as the suite does with chat models), and the code to complete of repobench-p is
    the only question that a cut may shorten.

Rows are read from `<task>.jsonl` (`<task>_e.jsonl` for LongBench-E) or data.zip in the folder `path`, or from
data.zip of the hub set zai-org/LongBench, whose builder script is never run. Columns: input, context, answers
(list), length, dataset, language, all_classes (list or null), _id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import metrics, sources
from benchmarks.base import Benchmark, LeaderboardRun, Sample, Tokenizer, check_tasks
from benchmarks.longbench_tasks import (
    ALL_21,
    BUCKETS,
    COLUMNS,
    ENGLISH_16,
    EXTENDED_13,
    FEW_SHOT_AND_CODE,
    FIRST_LINE,
    categories,
    column_of,
    columns_of,
    prompts,
)
from benchmarks.truncation import cut_middle, room

ARCHIVE = "data.zip"


@dataclass(frozen=True)
class LongbenchBenchmark(Benchmark):
    """Options of LongBench.

    Raises:
        ValueError: an unknown task, or a task that LongBench-E does not have.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {
        task: prompts()[COLUMNS.get(task, task)]["metric"] for task in (*ALL_21, *COLUMNS)
    }

    tasks: tuple[str, ...] = ()
    """Empty: the 16 English and code tasks, or all 13 of LongBench-E; `qasper_e` stands for its columns qasper_e_0-4k, _4-8k and _8k+."""
    extended: bool = False
    """LongBench-E: 13 tasks with rows spread evenly over three lengths, a column each; `limit` then counts per column."""
    path: str = ""
    """A folder with <task>.jsonl or data.zip, or the archive itself; empty: the hub."""
    hub: str = "zai-org/LongBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: the suite's margin (3500 of 4096, 7500 of 8192, 31500 of 32768)."""
    assistant_prefix: bool = True
    """Whether the answer prefix opens the assistant's turn; else it ends the user's, as in the suite."""

    def __post_init__(self) -> None:
        """Resolve the tasks to columns, and refuse what cannot be run before a model loads."""
        given = self.tasks or (EXTENDED_13 if self.extended else ENGLISH_16)
        named = tuple(f"{task}_e" if self.extended and task in EXTENDED_13 else task for task in given)
        check_tasks(
            named,
            (*(ALL_21 if not self.extended else ()), *(f"{task}_e" for task in EXTENDED_13), *COLUMNS),
            "longbench",
        )
        columns = [column for task in named for column in (columns_of(task) or (task,))]
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(columns)))
        if self.max_length < 0:
            raise ValueError(
                f"longbench: max_length={self.max_length} must be positive, or 0 for the suite's margin"
            )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        read: dict[str, tuple[sources.Rows, dict[str, Any]]] = {}
        for task in self.tasks:
            name = f"{COLUMNS[task]}_e" if task in COLUMNS else task
            rows, origin = read[name] = read.get(name) or self._rows(name)
            if task == (columns_of(name) or (task,))[-1]:
                del read[name]
            chosen = (
                row
                for row in enumerate(rows)
                if task not in COLUMNS or column_of(name, row[1], f"longbench {name}, row {row[0]}") == task
            )
            for made, (position, row) in enumerate(chosen):
                if made == limit:
                    break
                yield self._sample(task, position, row, origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official score of the task: the best over the references; four tasks look at the first line only."""
        task = COLUMNS.get(sample.task, sample.task)
        metric = self.metrics[task]
        if task in FIRST_LINE:
            prediction = prediction.lstrip("\n").split("\n")[0]
        classes = sample.metadata.get("all_classes") or ()
        return {
            metric: metrics.best(
                _score(metric, prediction, str(reference), classes) for reference in sample.references
            )
        }

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the suite's prediction files: pred, answers, all_classes, and length (of LongBench-E: gives the column)."""
        for line, row in rows:
            where = f"line {line}"
            name = task if task is not None else row.get("dataset", row.get("task"))
            if name is None:
                raise ValueError(
                    f"{where}: no field 'dataset'; name the task on the command line: longbench/TASK"
                )
            extended = str(name).endswith("_e")
            check_tasks(
                [str(name)],
                (*ALL_21, *(f"{known}_e" for known in EXTENDED_13), *COLUMNS),
                f"{where}: longbench",
            )
            column = column_of(str(name), row, where) if extended else str(name)
            prediction = sources.text_field(row, ["pred"], where)
            metadata = {"all_classes": _classes(row, where), "length": row.get("length")}
            yield (
                Sample(f"{name}/{line}", column, "", "", _answers(row, where), metadata=metadata),
                prediction,
            )

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Averages by name.

        `average`: the mean of the 16 English and code tasks, as papers on cache compression have it.
        `category_average` and
        `category_average_zh`: the mean of six category means of the suite's README, English and Chinese; code
        counts in both. LongBench-E: the mean over its data sets of the mean over their columns, and the mean
        of each length.
        """
        if all(task in COLUMNS for task in self.tasks):
            lengths = {
                f"average_{bucket}": [(f"{task}_e_{bucket}",) for task in EXTENDED_13] for bucket in BUCKETS
            }
            return {"average": [columns_of(f"{task}_e") for task in EXTENDED_13], **lengths}
        languages = {prompts()[task]["language"] for task in self.tasks if task not in COLUMNS}
        found: dict[str, Sequence[Sequence[str]]] = {}
        if languages - {"zh"}:
            found["average"] = [(task,) for task in ENGLISH_16]
        for name, language in (("category_average", "en"), ("category_average_zh", "zh")):
            if language in languages:
                found[name] = categories(language)
        return found or {"average": [(task,) for task in self.tasks]}

    def leaderboard(self, means: Mapping[str, float]) -> list[LeaderboardRun]:
        """One run per task, whose metrics are a single number in percent.

        Raises:
            ValueError: columns of LongBench-E, which kvpress splits otherwise.
        """
        columns = [task for task in means if task in COLUMNS]
        if columns:
            raise ValueError(
                f"the kvpress leaderboard takes LongBench-E whole, not by columns such as {columns[0]}; export LongBench"
            )
        return [LeaderboardRun("longbench", task, (task,), round(mean, 2)) for task, mean in means.items()]

    def headings(self) -> Mapping[str, Sequence[str]]:
        """The suite's categories, as tables of papers name them."""
        names = {"qa": "QA", "doc": "Doc", "shot": "Shot"}
        found: dict[str, list[str]] = {}
        for task in ALL_21:
            words = prompts()[task]["category"].split("_")
            found.setdefault(" ".join(names.get(word, word.capitalize()) for word in words), []).append(task)
        return found

    def _rows(self, name: str) -> tuple[sources.Rows, dict[str, Any]]:
        what, place = f"longbench {name}", Path(self.path).expanduser()
        if not self.path:
            archive, commit = sources.hub_file(self.hub, ARCHIVE, self.revision, what)
            rows, origin = (
                sources.archive_rows(archive, f"{name}.jsonl", what),
                {"source": self.hub, "revision": commit},
            )
        elif place.suffix == ".zip" or (
            (place / ARCHIVE).is_file() and not (place / f"{name}.jsonl").is_file()
        ):
            place = place if place.suffix == ".zip" else place / ARCHIVE
            rows, origin = (
                sources.archive_rows(place, f"{name}.jsonl", what),
                {"source": place.name, "revision": None},
            )
        else:
            rows, file = sources.local_rows(self.path, (name, f"data/{name}"), what)
            origin = {"source": file.name, "revision": None}
        if not rows:
            raise ValueError(f"{what}: {origin['source']} has no row")
        return rows, origin

    def _sample(
        self,
        task: str,
        position: int,
        row: Mapping[str, Any],
        origin: Mapping[str, Any],
        tokenizer: Tokenizer,
        window: int,
    ) -> Sample:
        dataset, where = COLUMNS.get(task, task), f"longbench {task}, row {position}"
        fixed = prompts()[dataset]
        fields = {name: sources.text_field(row, [name], where) for name in ("context", "input")}
        parts = [fixed[part].format(**fields) for part in ("context", "question", "answer_prefix")]
        chat = dataset not in FEW_SHOT_AND_CODE
        references = _answers(row, where)
        evidence = _paragraph(parts[0], references[0]) if dataset.startswith("passage_retrieval") else ()
        answer = int(fixed["max_new_tokens"])
        limit = self.max_length or min(window * 1000 // 1024 - 500, room(window, answer, chat))
        code = dataset == "repobench-p"
        cut = cut_middle(
            (parts[0], parts[1], parts[2]), evidence, tokenizer, limit, name=where, into_question=code
        )
        moved = "" if self.assistant_prefix else cut.answer_prefix
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=cut.context,
            question=cut.question + moved,
            references=references,
            answer_prefix=cut.answer_prefix if self.assistant_prefix else "",
            max_new_tokens=answer,
            evidence=cut.evidence,
            chat_template=chat,
            stop=("\n",) if dataset == "samsum" else (),
            min_new_tokens=1 if dataset == "samsum" else 0,
            truncated=cut.truncated,
            metadata={
                "row": str(row.get("_id", position)),
                "length": row.get("length"),
                "all_classes": _classes(row, where),
                "max_length": limit,
                **origin,
            },
        )


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    answers = sources.field(row, ["answers"], where)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: the field 'answers' is not a list of texts")
    return tuple(answers)


def _classes(row: Mapping[str, Any], where: str) -> list[str] | None:
    classes = row.get("all_classes")
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        raise ValueError(f"{where}: the field 'all_classes' is not a list of texts")
    return classes


def _paragraph(context: str, answer: str) -> tuple[tuple[int, int], ...]:
    """The span of the paragraph that an answer like "Paragraph 19" or "段落5" names."""
    end = r"(?=\n\n(?:Paragraph |段落)\d+[:：]|\n\n(?:The following is an abstract|下面是一个摘要)|\Z)"
    found = re.search(rf"^{re.escape(answer.strip())}[:：].*?{end}", context, re.MULTILINE | re.DOTALL)
    return (found.span(),) if found else ()


def _score(metric: str, prediction: str, reference: str, classes: Sequence[str]) -> float:
    if metric == "classification":
        return metrics.classification(prediction, reference, classes)
    if metric in ("retrieval", "retrieval_zh"):
        number = re.search(r"Paragraph (\d+)" if metric == "retrieval" else r"段落(\d+)", reference)
        return metrics.share_of_numbers(prediction, number[1]) if number else 0.0
    functions = {
        "qa_f1": metrics.qa_f1,
        "qa_f1_zh": metrics.qa_f1_zh,
        "rouge": metrics.rouge_l,
        "rouge_zh": metrics.rouge_l_zh,
        "count": metrics.share_of_numbers,
        "code_sim": metrics.code_similarity,
    }
    return functions[metric](prediction, reference)
