"""HELMET: recall, retrieval-augmented answers and many-shot classification, at five lengths, from the suite's own data files.

Source: Yen et al. 2024, arXiv 2410.02694; princeton-nlp/HELMET at 4526dfb (MIT): data.py, utils.py,
model_utils.py, configs/*.yaml.
Differs: of the seven categories these three; questions are drawn by
    `random.Random(seed)`, officially by the state that earlier data sets left behind; trec, banking77,
    clinic150 and nlu are read from local files instead of the hub's script data sets.

`path=` is the unpacked data folder: json_kv/, ruler/, kilt/ as in the suite's archive, and for classification
`icl/<name>/train.jsonl` and `test.jsonl` with the columns text and label (an integer).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks, local_file
from benchmarks.metrics import english_words

LENGTHS = (8192, 16384, 32768, 65536, 131072)
CATEGORIES = {
    "recall": ("json_kv", "ruler_niah_mk_2", "ruler_niah_mk_3", "ruler_niah_mv"),
    "rag": ("nq", "triviaqa", "hotpotqa", "popqa"),
    "icl": ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu"),
}
TASKS = tuple(task for tasks in CATEGORIES.values() for task in tasks)
_METRICS = {
    **dict.fromkeys(CATEGORIES["recall"], "ruler_recall"),
    **dict.fromkeys(CATEGORIES["icl"], "exact_match"),
    **dict.fromkeys(("json_kv", *CATEGORIES["rag"]), "substring_exact_match"),
}
_NEW_TOKENS = {"json_kv": 100, "ruler_niah_mk_2": 50, "ruler_niah_mk_3": 100, "ruler_niah_mv": 50}
_FILES = {
    "json_kv": ("json_kv/test_k{}_dep6.jsonl", (105, 220, 440, 900, 1800)),
    "ruler_niah_mk_2": ("ruler/niah_multikey_2/validation_{}.jsonl", LENGTHS),
    "ruler_niah_mk_3": ("ruler/niah_multikey_3/validation_{}.jsonl", LENGTHS),
    "ruler_niah_mv": ("ruler/niah_multivalue/validation_{}.jsonl", LENGTHS),
    "nq": ("kilt/nq-dev-multikilt_1000_k{}_dep6.jsonl", (50, 105, 220, 440, 1000)),
    "triviaqa": ("kilt/triviaqa-dev-multikilt_1000_k{}_dep6.jsonl", (50, 105, 220, 440, 1000)),
    "hotpotqa": ("kilt/hotpotqa-dev-multikilt_1000_k{}_dep3.jsonl", (50, 105, 220, 440, 1000)),
    "popqa": ("kilt/popqa_test_1000_k{}_dep6.jsonl", (50, 105, 220, 440, 1000)),
}
_DEMOS = {
    "nq": "kilt/nq-train-multikilt_1000_k3_dep6.jsonl",
    "triviaqa": "kilt/triviaqa-train-multikilt_1000_k3_dep6.jsonl",
    "hotpotqa": "kilt/hotpotqa-train-multikilt_1000_k3_dep3.jsonl",
    "popqa": "kilt/popqa_test_1000_k3_dep6.jsonl",
}
_ICL = {
    "trec_coarse": (6, (400, 800, 1600, 3300, 6600)),
    "trec_fine": (50, (400, 800, 1600, 3200, 6400)),
    "banking77": (77, (360, 720, 1450, 2900, 5900)),
    "clinic150": (151, (440, 880, 1750, 3525, 7050)),
    "nlu": (68, (510, 1020, 2040, 4080, 8296)),
}
"""Labels, and examples in the context for each length."""
_POPULARITY = 3.0  # log10 of the page views of popqa's subjects stays below


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
    """Rows drawn (questions, of the retrieval tasks, which have several rows each; five times as many for classification)."""
    seed: int = 42
    chat_template: bool = False
    """False: the bare prompt, as the suite's settings for base models."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, TASKS, "helmet")
        if self.length not in LENGTHS:
            raise ValueError(
                f"helmet: length={self.length} is not known; choose one of {', '.join(map(str, LENGTHS))}"
            )
        for name, value, least in (("shots", self.shots, 0), ("samples_per_task", self.samples_per_task, 1)):
            if value < least:
                raise ValueError(f"helmet: {name}={value} must be at least {least}")

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        if not self.path:
            raise ValueError(
                "helmet: no path; set benchmark.path to the suite's data folder (unpacked data.tar.gz)"
            )
        for task in self.tasks:
            make = self._examples if task in _ICL else self._questions if task in _DEMOS else self._recall
            new_tokens = _NEW_TOKENS.get(task, 20)
            room = min(self.length, window) - new_tokens - (64 if self.chat_template else 8)
            for position, (head, context, question, prefix, references) in enumerate(make(task, limit)):
                where = f"helmet {task}, row {position}"
                kept = cut_end(head, context, question + prefix, tokenizer, room, where)
                yield Sample(
                    id=f"{task}/{position}",
                    task=task,
                    context=head + kept,
                    question=question,
                    references=references,
                    answer_prefix=prefix,
                    max_new_tokens=new_tokens,
                    evidence=sources.find_spans(head + kept, references)
                    if task in CATEGORIES["recall"]
                    else (),
                    chat_template=self.chat_template,
                    stop=() if task in CATEGORIES["recall"] else ("\n",),
                    truncated=kept != context,
                    metadata={
                        "length": self.length,
                        "seed": self.seed,
                        "source": "local files",
                        "revision": None,
                    },
                )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Share of the values found (recall of needles), whether an answer is contained, or whether the label is equal."""
        metric, references = self.metrics[sample.task], [str(reference) for reference in sample.references]
        if not prediction.strip() or not references:
            return {metric: 0.0}
        if metric == "ruler_recall":
            return {
                metric: sum(reference.lower() in prediction.lower() for reference in references)
                / len(references)
            }
        wanted, given = (
            [" ".join(english_words(reference)) for reference in references],
            " ".join(english_words(prediction)),
        )
        if metric == "substring_exact_match":
            return {metric: float(any(answer in given for answer in wanted))}
        return {metric: float(" ".join(english_words(parse_label(prediction))) in wanted)}

    def reference_answer(self, sample: Sample) -> str:
        """All references where all are asked for, else the first."""
        wanted = sample.references if self.metrics[sample.task] == "ruler_recall" else sample.references[:1]
        return ", ".join(map(str, wanted))

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the `data` list of the suite's result files: output, answer (a text or a list); rows without an output are left out."""
        for line, row in rows:
            name, where = task if task is not None else row.get("task"), f"line {line}"
            if name not in TASKS:
                given = (
                    "no field 'task'; name it on the command line: helmet/TASK"
                    if name is None
                    else f"helmet has no task {name!r}"
                )
                raise ValueError(f"{where}: {given}; its tasks are {', '.join(TASKS)}")
            answer = sources.field(row, ["answer"], where)
            if row.get("output") is not None:
                yield Sample(f"{name}/{line}", name, "", "", _texts(answer)), str(row["output"])

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Mean of the chosen tasks, and of each category that is complete."""
        named = {name: tasks for name, tasks in CATEGORIES.items() if set(tasks) <= set(self.tasks)}
        return {name: [(task,) for task in tasks] for name, tasks in {"average": self.tasks, **named}.items()}

    def _file(self, task: str) -> sources.Rows:
        name, sizes = _FILES[task]
        return self._read(name.format(sizes[LENGTHS.index(self.length)]), task)

    def _read(self, name: str, task: str) -> sources.Rows:
        file = local_file(
            Path(self.path).expanduser() / name,
            f"helmet {task}",
            "path must be the suite's unpacked data folder",
        )
        return sources.file_rows(file)

    def _recall(self, task: str, limit: int | None) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
        rows = self._file(task)
        for at in permutation(len(rows), self.seed)[: self.samples_per_task][:limit]:
            row, where = rows[at], f"helmet {task}, row {at}"
            context = sources.text_field(row, ["context"], where)
            references = _texts(sources.field(row, ["answer", "outputs"], where))
            if task == "json_kv":
                demos = "".join(
                    f"Key: {key}\nCorresponding value: {value}\n\n"
                    for key, value in row["demos"][: self.shots]
                )
                ask = f"\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n{demos}Key: {row['question']}"
                yield "", context, ask, "\nCorresponding value:", references
                continue
            kind, query = (sources.text_field(row, [name], where) for name in ("type_needle_v", "query"))
            several = task == "ruler_niah_mv"
            hidden = f"Some special magic {kind} are" if several else f"A special magic {kind} is"
            head = f"{hidden} hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
            asked = f"{'are all' if several else 'is'} the special magic {kind} for {query} mentioned in the provided text"
            cue = f"The special magic {kind} for {query} mentioned in the provided text {'are' if several else 'is'}"
            yield head, context, f"\nWhat {asked}?", f"\n{cue}", references

    def _questions(
        self, task: str, limit: int | None
    ) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
        rows, examples = self._file(task), self._read(_DEMOS[task], task)
        if task == "popqa":
            rows, examples = (
                [row for row in part if math.log10(max(1, row["s_pop"])) < _POPULARITY]
                for part in (rows, examples)
            )
        if not rows:
            raise ValueError(f"helmet {task}: the file has no row")
        key = "id" if "id" in rows[0] else "question"
        names = sorted({row[key] for row in rows})
        drawn = set(random.Random(self.seed).sample(names, min(self.samples_per_task, len(names))))
        instruction = (
            "Use the given documents to write a concise and short answer to the question. Write your answer in the following format:\n"
            "Answer: [answer]\n\n"
        )
        for row in [row for row in rows if row[key] in drawn][:limit]:
            others = [demo for demo in examples if task != "popqa" or demo[key] != row[key]]
            order = permutation(
                len(others), int(hashlib.sha256(str(row[key]).encode()).hexdigest(), 16) % 2**31
            )
            first: dict[Any, Mapping[str, Any]] = {}
            for at in order:
                first.setdefault(others[at][key], others[at])
            chosen = list(first.values())[: self.shots]
            demos = "".join(
                f"{_documents(demo)}\n\nQuestion: {demo['question']}\nAnswer: {demo['answers'][0]}\n\n"
                for demo in chosen
            )
            yield (
                instruction + demos,
                _documents(row),
                f"\n\nQuestion: {row['question']}",
                "\nAnswer:",
                _texts(row["answers"]),
            )

    def _examples(self, task: str, limit: int | None) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
        labels, sizes = _ICL[task]
        train, test = (self._read(f"icl/{task}/{part}.jsonl", task) for part in ("train", "test"))
        if len(test) > 5 * self.samples_per_task:
            test = balanced(
                [test[at] for at in permutation(len(test), self.seed)], 5 * self.samples_per_task, self.seed
            )
        head = (
            "Use the provided mapping from the text to label to assign a label to the text. "
            'Only output "label: {label}" and nothing else. \n\n'
        )
        for row in test[:limit]:
            seed = (int(hashlib.sha256(row["text"].encode()).hexdigest(), 16) + self.seed) % 2**31
            names = list(range(labels))
            random.Random(seed).shuffle(names)
            shown = balanced(train, sizes[LENGTHS.index(self.length)], seed)
            context = "\n\n".join(f"{one['text']}\nlabel: {names[int(one['label'])]}" for one in shown)
            yield head, context, f"\n\n{row['text']}", "\nlabel:", (str(names[int(row["label"])]),)


def balanced(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Any]:
    """`count` rows in rounds that hold every label once, in random order."""
    draw, by_label = random.Random(seed), dict[Any, list[Mapping[str, Any]]]()
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    rounds: list[list[Mapping[str, Any]]] = [[] for _ in range(math.ceil(count / max(1, len(by_label))))]
    for same in by_label.values():
        indices = draw.sample(range(len(same)), len(rounds) % len(same))
        while len(indices) < len(rounds):
            indices += draw.sample(range(len(same)), min(len(rounds) - len(indices), len(same)))
        for part, index in zip(rounds, indices, strict=True):
            part.append(same[index])
    for part in rounds:
        draw.shuffle(part)
    return [row for part in rounds for row in part][:count]


def permutation(count: int, seed: int) -> list[int]:
    """The order in which `datasets` shuffles rows under a seed."""
    import numpy

    return [int(at) for at in numpy.random.default_rng(seed).permutation(count)]


def cut_end(head: str, context: str, tail: str, tokenizer: Tokenizer, limit: int, where: str) -> str:
    """The context without as many tokens at its end as the prompt has too many.

    Raises:
        ValueError: the rest of the prompt does not fit.
    """
    if len((head + context + tail).encode("utf-8", "surrogatepass")) <= limit:
        return context
    excess = sources.count_tokens(tokenizer, head + context + tail) - limit
    if excess <= 0:
        return context
    tokens = tokenizer.encode(context, add_special_tokens=False)
    if excess >= len(tokens):
        raise ValueError(
            f"{where}: instruction, examples and question do not fit into {limit} tokens; choose a longer length or model window"
        )
    return tokenizer.decode(tokens[:-excess], skip_special_tokens=True)


def parse_label(prediction: str) -> str:
    """What stands behind the first "label:" of an answer, up to the end of its line; else its first line."""
    place = prediction.lower().find("label:")
    line = prediction[place + len("label:") if place >= 0 else 0 :].split("\n")[0].strip()
    return re.sub("^label:", "", line, flags=re.IGNORECASE).strip()


def _documents(row: Mapping[str, Any]) -> str:
    return "\n\n".join(
        f"Document (Title: {document['title']}): {document['text']}" for document in row["ctxs"]
    )


def _texts(answer: Any) -> tuple[str, ...]:
    """The answers of a row: a text, a list of texts or a list of lists."""
    if not isinstance(answer, list):
        return (str(answer),)
    return tuple(str(text) for part in answer for text in (part if isinstance(part, list) else [part]))
