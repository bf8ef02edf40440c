"""LongBench and LongBench-E: 21 tasks in English, Chinese and code.

Questions, summaries, few-shot examples, retrieval and completion.

Source: Bai et al. 2023, arXiv 2308.14508; THUDM/LongBench at 2e00731 (MIT): LongBench/{pred,eval,metrics}.py,
    config/*.json.
Differs: the answer prefix ("Answer:") opens the assistant's turn (`assistant_prefix=false` leaves it in the
    user's, as the suite does with chat models), and the code to complete of repobench-p is the only question
    that a cut may shorten.

Rows are read from `<task>.jsonl` (`<task>_e.jsonl` for LongBench-E) or data.zip in the folder `path`, or from
data.zip of the hub set zai-org/LongBench, whose builder script is never run. Columns: input, context, answers
(list), length, dataset, language, all_classes (list or null), _id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.base import (
    Benchmark,
    LeaderboardRun,
    NumberedRows,
    Prediction,
    PromptParts,
    Sample,
    Tokenizer,
)
from benchmarks.longbench.tasks import (
    ALL_21,
    BUCKETS,
    COLUMNS,
    ENGLISH_16,
    EXTENDED_13,
    FEW_SHOT_AND_CODE,
    FIRST_LINE,
    NAMES,
    categories,
    column_of,
    columns_of,
    prompts,
)
from benchmarks.text import metrics
from benchmarks.text.fields import text_field, text_list
from benchmarks.text.sources import Table, hub_file_table, local_table
from benchmarks.text.spans import Spans
from benchmarks.text.token_counts import Window
from benchmarks.text.truncation import cut_middle

ARCHIVE = "data.zip"
"""That holds all data sets."""


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
    """Empty: the 16 English and code tasks, or all 13 of LongBench-E; `qasper_e` stands for its columns
    qasper_e_0-4k, _4-8k and _8k+."""
    extended: bool = False
    """LongBench-E: 13 tasks with rows spread evenly over three lengths, a column each; `limit` then counts
    per column."""
    path: str = ""
    """A folder with <task>.jsonl or data.zip, or the archive itself; empty: the hub."""
    hub: str = "zai-org/LongBench"
    revision: str = ""
    """Commit of the hub data set; empty: the newest, whose commit is recorded. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut, half from each end; 0: the suite's margin (3500 of 4096, 7500 of 8192,
    31500 of 32768)."""
    assistant_prefix: bool = True
    """Whether the answer prefix opens the assistant's turn; else it ends the user's, as in the suite."""

    def __post_init__(self) -> None:
        """Resolve the tasks to columns, and refuse what cannot be run before a model loads."""
        given = self.tasks or (EXTENDED_13 if self.extended else ENGLISH_16)
        named = tuple(f"{task}_e" if self.extended and task in EXTENDED_13 else task for task in given)
        self.check_tasks([name for name in NAMES if not (self.extended and name in ALL_21)], named)
        columns = [column for task in named for column in (columns_of(task) or (task,))]
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(columns)))
        self.check_positive_or_zero(max_length="the suite's margin")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        tables: dict[str, Table] = {}
        for task in self.tasks:
            name = f"{COLUMNS[task]}_e" if task in COLUMNS else task
            if name not in tables:
                tables[name] = self._table(name)
            table = tables[name]
            if task == (columns_of(name) or (task,))[-1]:
                del tables[name]  # the last of its columns
            chosen = (
                (position, row)
                for position, row in enumerate(table.rows)
                if task not in COLUMNS or column_of(name, row, f"longbench {name}, row {position}") == task
            )
            for made, (position, row) in enumerate(chosen):
                if made == limit:
                    break
                yield self._sample(task, position, row, table.origin, tokenizer, window)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The official score of the task, the best over the references.

        Four tasks look at the first line only.
        """
        task = COLUMNS.get(sample.task, sample.task)
        metric = self.metrics[task]
        if task in FIRST_LINE:
            prediction = prediction.lstrip("\n").split("\n")[0]
        classes = sample.metadata.get("all_classes") or ()
        references = map(str, sample.references)
        return {
            metric: metrics.best(_score(metric, prediction, reference, classes) for reference in references)
        }

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the suite's prediction files: pred, answers, all_classes; of LongBench-E, length too."""
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=NAMES, fields=("dataset", "task"))
            column = column_of(name, row, where) if name.endswith("_e") else name
            text = text_field(row, "pred", where=where)
            facts = {"all_classes": _classes(row, where), "length": row.get("length")}
            sample = Sample(f"{name}/{line}", column, "", "", _answers(row, where), metadata=facts)
            yield Prediction(sample, text)

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Averages by name.

        `average`: the mean of the 16 English and code tasks, as papers on cache compression have it.
        `category_average` and `category_average_zh`: the mean of six category means of the suite's README,
        English and Chinese; code counts in both. LongBench-E: the mean over its data sets of the mean over
        their columns, and the mean of each length.
        """
        if all(task in COLUMNS for task in self.tasks):
            lengths = {
                f"average_{bucket}": [(f"{task}_e_{bucket}",) for task in EXTENDED_13] for bucket in BUCKETS
            }
            return {"average": [columns_of(f"{task}_e") for task in EXTENDED_13], **lengths}
        languages = {prompts()[task]["language"] for task in self.tasks if task not in COLUMNS}
        averages: dict[str, Sequence[Sequence[str]]] = {}
        if languages - {"zh"}:
            averages["average"] = [(task,) for task in ENGLISH_16]
        for name, language in (("category_average", "en"), ("category_average_zh", "zh")):
            if language in languages:
                averages[name] = categories(language)
        return averages or {"average": [(task,) for task in self.tasks]}

    def leaderboard(self, means: Mapping[str, float]) -> list[LeaderboardRun]:
        """One run per task, whose metrics are a single number in percent.

        Raises:
            ValueError: columns of LongBench-E, which kvpress splits otherwise.
        """
        columns = [task for task in means if task in COLUMNS]
        if columns:
            raise ValueError(
                "the kvpress leaderboard takes LongBench-E whole, "
                f"not by columns such as {columns[0]}; export LongBench"
            )
        return [LeaderboardRun("longbench", task, (task,), round(mean, 2)) for task, mean in means.items()]

    def headings(self) -> Mapping[str, Sequence[str]]:
        """The suite's categories, as tables of papers name them."""
        headings: dict[str, list[str]] = {}
        for task in ALL_21:
            words = prompts()[task]["category"].split("_")
            heading = " ".join("QA" if word == "qa" else word.capitalize() for word in words)
            headings.setdefault(heading, []).append(task)
        return headings

    def _table(self, name: str) -> Table:
        """The rows of a data set of LongBench (`qasper`) or of LongBench-E (`qasper_e`)."""
        what, member = f"longbench {name}", f"{name}.jsonl"
        if not self.path:
            return hub_file_table(self.hub, ARCHIVE, self.revision, what, member)
        return local_table(self.path, (member, ARCHIVE, name, f"data/{name}"), what, member)

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
        template = prompts()[dataset]
        fields = {name: text_field(row, name, where=where) for name in ("context", "input")}
        parts = PromptParts(*(template[part].format(**fields) for part in PromptParts._fields))
        references = _answers(row, where)

        # The cut, with the suite's margin.
        chat = dataset not in FEW_SHOT_AND_CODE
        max_new_tokens = int(template["max_new_tokens"])
        margin = window * 1000 // 1024 - 500
        shared = Window(tokenizer, window, max_new_tokens, chat)
        limit = min(self.max_length or margin, shared.room)
        retrieval = dataset.startswith("passage_retrieval")
        cut = cut_middle(
            parts,
            shared,
            limit,
            where=where,
            count_special=True,
            evidence=_paragraph(parts.context, references[0]) if retrieval else (),
            cut_question=dataset == "repobench-p",
        )

        prefix_of_user = "" if self.assistant_prefix else cut.answer_prefix
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=cut.context,
            question=cut.question + prefix_of_user,
            references=references,
            answer_prefix=cut.answer_prefix if self.assistant_prefix else "",
            max_new_tokens=max_new_tokens,
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
    """The accepted answers of a row.

    Raises:
        ValueError: there is none, or one is not text.
    """
    answers = text_list(row, "answers", where)
    if not answers:
        raise ValueError(f"{where}: the field 'answers' is not a list of texts")
    return tuple(answers)


def _classes(row: Mapping[str, Any], where: str) -> list[str] | None:
    """The names of the classes of a row, where it has any."""
    return None if row.get("all_classes") is None else text_list(row, "all_classes", where)


def _paragraph(context: str, answer: str) -> Spans:
    """The span of the paragraph that an answer like "Paragraph 19" or "段落5" names."""
    end = r"(?=\n\n(?:Paragraph |段落)\d+[:：]|\n\n(?:The following is an abstract|下面是一个摘要)|\Z)"
    paragraph = re.search(rf"^{re.escape(answer.strip())}[:：].*?{end}", context, re.MULTILINE | re.DOTALL)
    return (paragraph.span(),) if paragraph else ()


def _score(metric: str, prediction: str, reference: str, classes: Sequence[str]) -> float:
    """One of the suite's metrics, by the name that `prompts` gives it."""
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
