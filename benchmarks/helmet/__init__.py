"""HELMET: recall, retrieval-augmented answers and many-shot classification, at five lengths.

Source: Yen et al. 2024, arXiv 2410.02694; princeton-nlp/HELMET at 4526dfb (MIT): data.py, utils.py,
    model_utils.py, configs/*.yaml.
Differs: of the seven categories these three; questions are drawn by `random.Random(seed)`, officially by the
    state that earlier data sets left behind; trec, banking77, clinic150 and nlu are read from local files
    instead of the hub's script data sets.

Rows come from the suite's own data files: `path=` is the unpacked data folder, with json_kv/, ruler/, kilt/
as in the suite's archive, and for classification `icl/<name>/train.jsonl` and `test.jsonl` with the columns
text and label (an integer).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.base import (
    Benchmark,
    NumberedRows,
    Prediction,
    PromptParts,
    Sample,
    Tokenizer,
    complete_categories,
)
from benchmarks.helmet.prompts import CATEGORIES, LENGTHS, HelmetData, texts
from benchmarks.text.fields import field
from benchmarks.text.metrics import english_words
from benchmarks.text.spans import find_spans
from benchmarks.text.token_counts import Window

TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)

MAX_NEW_TOKENS = {
    "json_kv": 100,
    "ruler_niah_mk_2": 50,
    "ruler_niah_mk_3": 100,
    "ruler_niah_mv": 50,
    **dict.fromkeys((*CATEGORIES["rag"], *CATEGORIES["icl"]), 20),
}
"""Tokens of an answer of each task."""

_METRICS = {
    **dict.fromkeys(CATEGORIES["recall"], "ruler_recall"),
    **dict.fromkeys(CATEGORIES["icl"], "exact_match"),
    **dict.fromkeys(("json_kv", *CATEGORIES["rag"]), "substring_exact_match"),
}


@dataclass(frozen=True)
class HelmetBenchmark(Benchmark):
    """Options of HELMET.

    Raises:
        ValueError: an unknown task or length, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = _METRICS

    tasks: tuple[str, ...] = (*CATEGORIES["recall"], *CATEGORIES["rag"])
    """Also the five of many-shot classification: trec_coarse, trec_fine, banking77, clinic150, nlu."""
    length: int = 8192
    """Tokens of a prompt and its answer: 8192, 16384, 32768, 65536 or 131072."""
    path: str = ""
    """The suite's data folder (unpacked data.tar.gz); there is no default, the archive has 34 GB."""
    shots: int = 2
    """Worked examples of json_kv and the questions."""
    samples_per_task: int = 100
    """Rows drawn; of tasks with documents, questions, which have several rows each; of classification, five
    times as many."""
    seed: int = 42
    chat_template: bool = False
    """False: the bare prompt, as the suite's settings for base models."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(TASKS)
        self.check_choices(length=LENGTHS)
        self.check_at_least(shots=0, samples_per_task=1)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        if not self.path:
            raise ValueError(
                "helmet: no path; set benchmark.path to the suite's data folder (unpacked data.tar.gz)"
            )
        folder = Path(self.path).expanduser()
        data = HelmetData(folder, self.length, self.shots, self.samples_per_task, self.seed)
        for task in self.tasks:
            recall = task in CATEGORIES["recall"]
            shared = Window(tokenizer, min(self.length, window), MAX_NEW_TOKENS[task], self.chat_template)
            for position, prompt in enumerate(data.prompts(task, limit)):
                where = f"helmet {task}, row {position}"
                kept = cut_end(
                    prompt.head, prompt.context, prompt.question, prompt.answer_prefix, shared, where
                )
                context = prompt.head + kept
                yield Sample(
                    id=f"{task}/{position}",
                    task=task,
                    context=context,
                    question=prompt.question,
                    references=prompt.references,
                    answer_prefix=prompt.answer_prefix,
                    max_new_tokens=MAX_NEW_TOKENS[task],
                    evidence=find_spans(context, prompt.references) if recall else (),
                    chat_template=self.chat_template,
                    stop=() if recall else ("\n",),
                    truncated=kept != prompt.context,
                    metadata={
                        "length": self.length,
                        "seed": self.seed,
                        "source": "local files",
                        "revision": None,
                    },
                )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Share of the needles' values found, whether an answer is contained, or if the label is equal."""
        metric, references = self.metrics[sample.task], [str(reference) for reference in sample.references]
        if not prediction.strip() or not references:
            return {metric: 0.0}
        if metric == "ruler_recall":
            contained = [reference.lower() in prediction.lower() for reference in references]
            return {metric: sum(contained) / len(references)}
        wanted = [_normalized(reference) for reference in references]
        if metric == "substring_exact_match":
            given = _normalized(prediction)
            return {metric: float(any(answer in given for answer in wanted))}
        return {metric: float(_normalized(parse_label(prediction)) in wanted)}

    def reference_answer(self, sample: Sample) -> str:
        """All references where all are asked for, else the first."""
        wanted = sample.references if self.metrics[sample.task] == "ruler_recall" else sample.references[:1]
        return ", ".join(map(str, wanted))

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows of the `data` list of the suite's result files: output, answer (a text or a list).

        Rows without an output are left out.
        """
        for line, row in rows:
            where = f"line {line}"
            name = self.task_of_row(row, task, where, allowed=TASKS)
            references = texts(field(row, "answer", where=where))
            if row.get("output") is not None:
                yield Prediction(Sample(f"{name}/{line}", name, "", "", references), str(row["output"]))

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Mean of the chosen tasks, and of each category that is complete."""
        averaged = complete_categories(CATEGORIES, self.tasks)
        return {name: [(task,) for task in tasks] for name, tasks in averaged.items()}


def cut_end(head: str, context: str, question: str, answer_prefix: str, window: Window, where: str) -> str:
    """The context without as many tokens at its end as the prompt has too many.

    Raises:
        ValueError: the rest of the prompt does not fit.
    """
    excess = window.excess(PromptParts(head + context, question, answer_prefix))
    if not excess:
        return context
    tokens = window.tokenizer.encode(context, add_special_tokens=False)
    while excess < len(tokens):
        kept = window.tokenizer.decode(tokens[:-excess], skip_special_tokens=True)
        more = window.excess(PromptParts(head + kept, question, answer_prefix))
        if not more:
            return kept
        excess += more  # what was cut has other tokens when it is read
    raise ValueError(
        f"{where}: instruction, examples and question do not fit into {window.size} tokens with an answer; "
        "choose a longer benchmark.length, or a model with a longer window"
    )


def parse_label(prediction: str) -> str:
    """What stands behind the first "label:" of an answer, up to the end of its line; else its first line."""
    place = prediction.lower().find("label:")
    line = prediction[place + len("label:") if place >= 0 else 0 :].split("\n")[0].strip()
    return re.sub("^label:", "", line, flags=re.IGNORECASE).strip()


def _normalized(text: str) -> str:
    """An answer in SQuAD's normal form."""
    return " ".join(english_words(text))
