"""ZeroSCROLLS: ten tasks over long reports, scripts, books and reviews; the test answers are kept by the authors.

Source: Shaham et al. 2023, arXiv 2305.14196; tau-nlp/zero_scrolls at c994676 (MIT):
    experiments/hf/run_hf_model.py (cut), experiments/api/api.py (answer lengths),
    submission/prepare_submission.py; metrics of the hub set tau/zero_scrolls.
Differs: ROUGE is a mean of rows' geometric means, officially the geometric mean of the three averages, which
    are reported too; accents are removed by Unicode decomposition; the answer cue stands in the assistant's
    turn of chat models.

Rows are read from the hub set's archives (`<task>.zip`), or from `path=`: a folder with `<task>.zip` or
`<task>/<split>.jsonl`. Rows of the same id are several references of one sample. Rows without an output give
an answer but no score (`split=test`); `python -m benchmarks.zero_scrolls_submission` writes the file to send
in.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.metrics import bag_f1, english_words, rouge_f

MAX_NEW_TOKENS = {
    "gov_report": 1024,
    "summ_screen_fd": 512,
    "qmsum": 512,
    "squality": 512,
    "qasper": 128,
    "narrative_qa": 64,
    "quality": 10,
    "musique": 32,
    "space_digest": 36,
    "book_sum_sort": 256,
}
"""Tokens of an answer in the suite's API script; its script for open models gives 1024 to every task."""
SUMMARIES, ANSWERS = (
    ("gov_report", "summ_screen_fd", "qmsum", "squality"),
    ("qasper", "narrative_qa", "musique"),
)
_METRICS = {
    **dict.fromkeys(SUMMARIES, "rouge"),
    **dict.fromkeys(ANSWERS, "f1"),
    "quality": "accuracy",
    "space_digest": "exp_similarity",
    "book_sum_sort": "concordance",
}
_ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class ZeroScrollsBenchmark(Benchmark):
    """Options of ZeroSCROLLS.

    Raises:
        ValueError: an unknown task or split, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = _METRICS

    tasks: tuple[str, ...] = tuple(MAX_NEW_TOKENS)
    split: str = "validation"
    """"validation" (about 20 rows a task, with answers, for a look) or "test" (for submission; scored only where a row has an output)."""
    path: str = ""
    """Folder with <task>.zip or <task>/<split>.jsonl; empty: the hub."""
    hub: str = "tau/zero_scrolls"
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    max_length: int = 0
    """Tokens to which a prompt is cut; 0: what the model's window leaves beside the answer."""
    max_new_tokens: int = 0
    """Tokens of an answer; 0: the API script's number for each task."""
    chat_template: bool = True
    """Whether the prompt is a user message."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, tuple(MAX_NEW_TOKENS), "zero_scrolls")
        if self.split not in ("validation", "test"):
            raise ValueError(f"zero_scrolls: split={self.split!r} is not known; choose validation or test")
        for name, value in (("max_length", self.max_length), ("max_new_tokens", self.max_new_tokens)):
            if value < 0:
                raise ValueError(f"zero_scrolls: {name}={value} must not be negative; 0 is the default")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the samples task by task; see `Benchmark.samples`."""
        for task in self.tasks:
            rows, origin = self._rows(task)
            merged: dict[str, list[Mapping[str, Any]]] = {}
            for number, row in enumerate(rows):
                merged.setdefault(
                    str(sources.field(row, ["id"], f"zero_scrolls {task}, row {number}")), []
                ).append(row)
            if not merged:
                raise ValueError(f"zero_scrolls {task}: {origin['source']} has no row")
            new_tokens = self.max_new_tokens or MAX_NEW_TOKENS[task]
            length = self.max_length or window - new_tokens - (64 if self.chat_template else 8)
            for identifier, same in list(merged.items())[:limit]:
                context, question, prefix, truncated = split_prompt(
                    same[0], tokenizer, length, f"zero_scrolls {task}, row {identifier}"
                )
                yield Sample(
                    id=f"{task}/{identifier}",
                    task=task,
                    context=context,
                    question=question,
                    references=tuple(
                        row["output"]
                        for row in same
                        if isinstance(row.get("output"), str) and row["output"].strip()
                    ),
                    answer_prefix=prefix,
                    max_new_tokens=new_tokens,
                    chat_template=self.chat_template,
                    truncated=truncated,
                    metadata={"id": identifier, "split": self.split, **origin},
                )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The task's metric, best over the references; nothing for a sample without references."""
        references = [str(reference) for reference in sample.references]
        if not references:
            return {}
        metric = self.metrics[sample.task]
        if metric == "rouge":
            found = rouge_f(references, prediction, _ROUGE)
            return {"rouge": (found["rouge1"] * found["rouge2"] * found["rougeL"]) ** (1 / 3), **found}
        rule = {"f1": f1, "accuracy": accuracy, "exp_similarity": exp_similarity, "concordance": concordance}[
            metric
        ]
        return {metric: max(rule(reference, prediction) for reference in references)}

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows with id, prediction and output (a text or a list of texts); rows without output are counted on standard error."""
        unscored = 0
        for line, row in rows:
            name, where = task if task is not None else row.get("task"), f"line {line}"
            if name not in MAX_NEW_TOKENS:
                given = (
                    "no field 'task'; name it on the command line: zero_scrolls/TASK"
                    if name is None
                    else f"zero_scrolls has no task {name!r}"
                )
                raise ValueError(f"{where}: {given}; its tasks are {', '.join(MAX_NEW_TOKENS)}")
            prediction, output = sources.text_field(row, ["prediction"], where), row.get("output")
            references = tuple(
                text
                for text in (output if isinstance(output, list) else [output])
                if isinstance(text, str) and text.strip()
            )
            if references:
                yield (
                    Sample(
                        f"{name}/{line}", name, "", "", references, metadata={"id": str(row.get("id", line))}
                    ),
                    prediction,
                )
            unscored += not references
        if unscored:
            print(f"zero_scrolls: {unscored} rows without an output are not scored", file=sys.stderr)

    def _rows(self, task: str) -> tuple[sources.Rows, dict[str, Any]]:
        what, member = f"zero_scrolls {task} {self.split}", f"{self.split}.jsonl"
        if not self.path:
            archive, commit = sources.hub_file(self.hub, f"{task}.zip", self.revision, what)
            return sources.archive_rows(archive, member, what), {"source": self.hub, "revision": commit}
        place = Path(self.path).expanduser()
        if (archive := place / f"{task}.zip").is_file():
            return sources.archive_rows(archive, member, what), {"source": archive.name, "revision": None}
        rows, file = sources.local_rows(place, (f"{task}/{self.split}", task), what)
        return rows, {"source": file.name, "revision": None}


def split_prompt(
    row: Mapping[str, Any], tokenizer: Tokenizer, limit: int, where: str
) -> tuple[str, str, str, bool]:
    """Context, question and answer cue of a row; a prompt over `limit` tokens loses the end of its document, as the row's separator says.

    Returns:
        The three parts, and whether the document was cut.

    Raises:
        ValueError: a column is missing, or the query alone exceeds the limit.
    """
    text = sources.text_field(row, ["input"], where)
    document, start, end = (
        int(sources.field(row, [name], where))
        for name in ("document_end_index", "query_start_index", "query_end_index")
    )
    end = max(document, end)
    if len(text.encode("utf-8", "surrogatepass")) <= limit or sources.count_tokens(tokenizer, text) <= limit:
        return text[:document], text[document:end], text[end:], False
    separator = str(sources.field(row, ["truncation_seperator", "truncation_separator"], where))
    left = limit - sources.count_tokens(tokenizer, separator + text[start:])
    if left < 1:
        raise ValueError(
            f"{where}: the query does not fit into {limit} tokens; use a model with a longer window"
        )
    kept = tokenizer.decode(
        tokenizer.encode(text[:start], add_special_tokens=False)[:left], skip_special_tokens=True
    )
    end = max(start, end)
    return kept + separator, text[start:end], text[end:], True


def f1(reference: str, prediction: str) -> float:
    """F1 of words as SQuAD compares them, accents removed."""
    left, right = ([_ascii(word) for word in english_words(text)] for text in (reference, prediction))
    return bag_f1(right, left)


def accuracy(reference: str, prediction: str) -> float:
    """Whether the first letter A to D that stands alone is the same."""
    wanted, given = (re.search(r"\b[A-D]\b", text) for text in (reference, prediction))
    return float(wanted is not None and given is not None and wanted[0] == given[0])


def exp_similarity(reference: str, prediction: str) -> float:
    """Halves with every ten points between the first percentages of both; 0 if the prediction has none."""
    wanted, given = (re.search(r"([0-9]+\.?[0-9]*)%", text) for text in (reference, prediction))
    if given is None:
        return 0.0
    return float(0.5 ** (abs((float(wanted[1]) if wanted else 0.0) - float(given[1])) / 10))


def concordance(reference: str, prediction: str) -> float:
    """Share of the pairs of chapters in the right order; 0 unless the prediction lists exactly the chapters of the reference."""
    wanted, given = (
        re.sub(r"[^0-9\s,]", "", text).replace(",", " ").split() for text in (reference, prediction)
    )
    wanted, given = ([number.lstrip("0") or "0" for number in numbers] for numbers in (wanted, given))
    if sorted(wanted) != sorted(given) or not wanted:
        return 0.0
    place = {number: position for position, number in enumerate(given)}
    order = [place[number] for number in wanted]
    pairs = [left < right for position, left in enumerate(order) for right in order[position + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 1.0


def _ascii(word: str) -> str:
    return "".join(
        character for character in unicodedata.normalize("NFKD", word) if not unicodedata.combining(character)
    )
