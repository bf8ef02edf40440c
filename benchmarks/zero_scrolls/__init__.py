"""ZeroSCROLLS: ten tasks over long reports, scripts, books and reviews.

The authors keep the answers of the test split.

Source: Shaham et al. 2023, arXiv 2305.14196; tau-nlp/zero_scrolls at c994676 (MIT):
    experiments/hf/run_hf_model.py (cut), experiments/api/api.py (answer lengths),
    submission/prepare_submission.py; metrics of the hub set tau/zero_scrolls.
Differs: ROUGE is a mean of rows' geometric means, officially the geometric mean of the three averages, which
    are reported too; accents are removed by Unicode decomposition; the answer cue stands in the assistant's
    turn of chat models.

Rows are read from the hub set's archives (`<task>.zip`), or from `path=`: a folder with `<task>.zip` or
`<task>/<split>.jsonl`. Rows of the same id are several references of one sample. Rows without an output give
an answer but no score (`split=test`); `python -m benchmarks.zero_scrolls.submission` writes the file to send
in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.base import Benchmark, NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.text.fields import field, text_field
from benchmarks.text.metrics import rouge_f
from benchmarks.text.sources import Table, hub_file_table, local_table
from benchmarks.text.token_counts import Window, count_tokens, surely_fit
from benchmarks.text.truncation import CutPrompt
from benchmarks.zero_scrolls.metrics import RULES

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

SPLITS = ("validation", "test")
"""Of every task."""

_METRICS = {
    **dict.fromkeys(("gov_report", "summ_screen_fd", "qmsum", "squality"), "rouge"),
    **dict.fromkeys(("qasper", "narrative_qa", "musique"), "f1"),
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
    """"validation" (about 20 rows a task, with answers, for a look) or "test" (for submission; scored only
    where a row has an output)."""
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
        self.check_tasks(MAX_NEW_TOKENS)
        self.check_choices(split=SPLITS)
        self.check_positive_or_zero(
            max_length="what the model's window leaves", max_new_tokens="the suite's number for each task"
        )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the samples task by task; see `Benchmark.samples`."""
        for task in self.tasks:
            table = self._table(task)

            # Rows of the same id are several references of one sample.
            by_id: dict[str, list[Mapping[str, Any]]] = {}
            for number, row in enumerate(table.rows):
                identifier = str(field(row, "id", where=f"zero_scrolls {task}, row {number}"))
                by_id.setdefault(identifier, []).append(row)

            max_new_tokens = self.max_new_tokens or MAX_NEW_TOKENS[task]
            shared = Window(tokenizer, window, max_new_tokens, self.chat_template)
            length = min(self.max_length or shared.room, shared.room)
            for identifier, rows in list(by_id.items())[:limit]:
                prompt = split_prompt(rows[0], shared, length, f"zero_scrolls {task}, row {identifier}")
                yield Sample(
                    id=f"{task}/{identifier}",
                    task=task,
                    context=prompt.context,
                    question=prompt.question,
                    references=_outputs([row.get("output") for row in rows]),
                    answer_prefix=prompt.answer_prefix,
                    max_new_tokens=max_new_tokens,
                    chat_template=self.chat_template,
                    truncated=prompt.truncated,
                    metadata={"id": identifier, "split": self.split, **table.origin},
                )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The task's metric, best over the references; nothing for a sample without references."""
        references = [str(reference) for reference in sample.references]
        if not references:
            return {}
        metric = self.metrics[sample.task]
        if metric == "rouge":
            scores = rouge_f(references, prediction, _ROUGE)
            product = scores["rouge1"] * scores["rouge2"] * scores["rougeL"]
            return {"rouge": product ** (1 / 3), **scores}
        return {metric: max(RULES[metric](reference, prediction) for reference in references)}

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows with id, prediction and output (a text or a list of texts).

        Rows without output are counted on standard error.
        """
        unscored = 0
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=MAX_NEW_TOKENS)
            text, output = text_field(row, "prediction", where=where), row.get("output")
            references = _outputs(output if isinstance(output, list) else [output])
            if references:
                facts = {"id": str(row.get("id", line))}
                yield Prediction(Sample(f"{name}/{line}", name, "", "", references, metadata=facts), text)
            unscored += not references
        if unscored:
            print(f"zero_scrolls: {unscored} rows without an output are not scored", file=sys.stderr)

    def _table(self, task: str) -> Table:
        """The rows of a task."""
        what, member = f"zero_scrolls {task} {self.split}", f"{self.split}.jsonl"
        if not self.path:
            return hub_file_table(self.hub, f"{task}.zip", self.revision, what, member)
        return local_table(self.path, (f"{task}.zip", f"{task}/{self.split}", task), what, member)


def split_prompt(row: Mapping[str, Any], window: Window, limit: int, where: str) -> CutPrompt:
    """Context, question and answer cue of a row.

    A prompt over `limit` tokens, or one that does not fit into the window with its answer, loses the end of
    its document, as the row's separator says.

    Raises:
        ValueError: a column is missing, or the query alone exceeds the limit.
    """
    text, tokenizer = text_field(row, "input", where=where), window.tokenizer
    document, start, end = (
        int(field(row, name, where=where))
        for name in ("document_end_index", "query_start_index", "query_end_index")
    )
    end = max(document, end)
    whole = PromptParts(text[:document], text[document:end], text[end:])
    if (surely_fit(limit, text) or count_tokens(tokenizer, text) <= limit) and not window.excess(whole):
        return CutPrompt(*whole, truncated=False)

    separator = str(field(row, "truncation_seperator", "truncation_separator", where=where))
    left = limit - count_tokens(tokenizer, separator + text[start:])
    tokens = tokenizer.encode(text[:start], add_special_tokens=False)
    end = max(start, end)
    while left >= 1:
        kept = tokenizer.decode(tokens[:left], skip_special_tokens=True)
        parts = PromptParts(kept + separator, text[start:end], text[end:])
        excess = window.excess(parts)
        if not excess:
            return CutPrompt(*parts, truncated=True)
        left = min(left, len(tokens)) - excess  # what was cut has other tokens when it is read
    raise ValueError(f"{where}: the query does not fit into {limit} tokens; use a model with a longer window")


def _outputs(outputs: list[Any]) -> tuple[str, ...]:
    """Those of the outputs of a sample's rows that are texts and not empty."""
    return tuple(text for text in outputs if isinstance(text, str) and text.strip())
