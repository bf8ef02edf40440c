"""Prompts of HELMET, made of the suite's own data files.

Source: princeton-nlp/HELMET at 4526dfb (MIT): data.py, configs/*.yaml.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.text.fields import field, text_field
from benchmarks.text.sources import Rows, file_rows, local_file

LENGTHS = (8192, 16384, 32768, 65536, 131072)
"""Tokens of a prompt and its answer."""

CATEGORIES = {
    "recall": ("json_kv", "ruler_niah_mk_2", "ruler_niah_mk_3", "ruler_niah_mv"),
    "rag": ("nq", "triviaqa", "hotpotqa", "popqa"),
    "icl": ("trec_coarse", "trec_fine", "banking77", "clinic150", "nlu"),
}
"""Each with its tasks: recall of values, answers among retrieved documents, many-shot classification."""

_DOCUMENTS = (50, 105, 220, 440, 1000)  # in the context, for each length
_POPULARITY = 3.0  # log10 of the page views of popqa's subjects stays below


class DataFile(NamedTuple):
    """A data file for each length.

    Attributes:
        name: within the data folder, with `{}` for the size.
        sizes: for each of `LENGTHS`.
    """

    name: str
    sizes: tuple[int, ...]


class ShotTask(NamedTuple):
    """A task of many-shot classification.

    Attributes:
        labels: how many there are.
        shots: examples in the context, for each of `LENGTHS`.
    """

    labels: int
    shots: tuple[int, ...]


class HelmetPrompt(NamedTuple):
    """A prompt before it is cut, and what it is scored against.

    Attributes:
        head: instruction and worked examples, which stay whole.
        context: what may be cut.
        question: what follows it.
        answer_prefix: the beginning of the answer.
        references: accepted answers.
    """

    head: str
    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]


FILES = {
    "json_kv": DataFile("json_kv/test_k{}_dep6.jsonl", (105, 220, 440, 900, 1800)),
    "ruler_niah_mk_2": DataFile("ruler/niah_multikey_2/validation_{}.jsonl", LENGTHS),
    "ruler_niah_mk_3": DataFile("ruler/niah_multikey_3/validation_{}.jsonl", LENGTHS),
    "ruler_niah_mv": DataFile("ruler/niah_multivalue/validation_{}.jsonl", LENGTHS),
    "nq": DataFile("kilt/nq-dev-multikilt_1000_k{}_dep6.jsonl", _DOCUMENTS),
    "triviaqa": DataFile("kilt/triviaqa-dev-multikilt_1000_k{}_dep6.jsonl", _DOCUMENTS),
    "hotpotqa": DataFile("kilt/hotpotqa-dev-multikilt_1000_k{}_dep3.jsonl", _DOCUMENTS),
    "popqa": DataFile("kilt/popqa_test_1000_k{}_dep6.jsonl", _DOCUMENTS),
}
"""Rows of recall and of questions among documents."""

DEMO_FILES = {
    "nq": "kilt/nq-train-multikilt_1000_k3_dep6.jsonl",
    "triviaqa": "kilt/triviaqa-train-multikilt_1000_k3_dep6.jsonl",
    "hotpotqa": "kilt/hotpotqa-train-multikilt_1000_k3_dep3.jsonl",
    "popqa": "kilt/popqa_test_1000_k3_dep6.jsonl",
}
"""Worked examples of questions among documents."""

SHOT_TASKS = {
    "trec_coarse": ShotTask(6, (400, 800, 1600, 3300, 6600)),
    "trec_fine": ShotTask(50, (400, 800, 1600, 3200, 6400)),
    "banking77": ShotTask(77, (360, 720, 1450, 2900, 5900)),
    "clinic150": ShotTask(151, (440, 880, 1750, 3525, 7050)),
    "nlu": ShotTask(68, (510, 1020, 2040, 4080, 8296)),
}


@dataclass(frozen=True)
class HelmetData:
    """The suite's data folder, and what is drawn from it; the fields are the benchmark's options."""

    folder: Path
    length: int
    shots: int
    samples_per_task: int
    seed: int

    def prompts(self, task: str, limit: int | None) -> Iterator[HelmetPrompt]:
        """The prompts of a task, at most `limit` of them.

        Raises:
            ValueError: a file is missing or broken, or lacks a field; names it.
        """
        if task in SHOT_TASKS:
            return self._many_shots(task, limit)
        if task in DEMO_FILES:
            return self._questions(task, limit)
        return self._recall(task, limit)

    def _recall(self, task: str, limit: int | None) -> Iterator[HelmetPrompt]:
        """Values in JSON, or needles in a text."""
        rows = self._rows(task)
        for at in permutation(len(rows), self.seed)[: self.samples_per_task][:limit]:
            row, where = rows[at], f"helmet {task}, row {at}"
            context = text_field(row, "context", where=where)
            references = texts(field(row, "answer", "outputs", where=where))
            if task == "json_kv":
                yield self._key_value(row, context, references)
                continue
            kind = text_field(row, "type_needle_v", where=where)
            query = text_field(row, "query", where=where)
            some, are, are_all = ("A", "is", "is")
            if task == "ruler_niah_mv":
                some, are, are_all = ("Some", "are", "are all")
            values = f"the special magic {kind} for {query} mentioned in the provided text"
            yield HelmetPrompt(
                head=f"{some} special magic {kind} {are} hidden within the following text. "
                f"Make sure to memorize it. I will quiz you about the {kind} afterwards.\n",
                context=context,
                question=f"\nWhat {are_all} {values}?",
                answer_prefix=f"\n{values[0].upper()}{values[1:]} {are}",
                references=references,
            )

    def _key_value(self, row: Mapping[str, Any], context: str, references: tuple[str, ...]) -> HelmetPrompt:
        """The value of a key in a JSON object."""
        demos = "".join(
            f"Key: {key}\nCorresponding value: {value}\n\n" for key, value in row["demos"][: self.shots]
        )
        question = (
            "\n\nExtract the value corresponding to the specified key in the JSON object below."
            f"\n\n{demos}Key: {row['question']}"
        )
        return HelmetPrompt("", context, question, "\nCorresponding value:", references)

    def _questions(self, task: str, limit: int | None) -> Iterator[HelmetPrompt]:
        """Questions among documents, with worked examples of questions drawn for each."""
        rows, examples = self._rows(task), self._read(DEMO_FILES[task], task)
        if task == "popqa":
            rows, examples = (
                [row for row in part if math.log10(max(1, row["s_pop"])) < _POPULARITY]
                for part in (rows, examples)
            )
        if not rows:
            raise ValueError(f"helmet {task}: the file has no row")

        # Questions are drawn, of which each has several rows.
        key = "id" if "id" in rows[0] else "question"
        names = sorted({row[key] for row in rows})
        drawn = set(random.Random(self.seed).sample(names, min(self.samples_per_task, len(names))))

        for row in [row for row in rows if row[key] in drawn][:limit]:
            # The first row of each of the first questions, in an order that the question decides.
            others = [demo for demo in examples if task != "popqa" or demo[key] != row[key]]
            first_rows: dict[Any, Mapping[str, Any]] = {}
            for at in permutation(len(others), _hashed(str(row[key])) % 2**31):
                first_rows.setdefault(others[at][key], others[at])
            demos = "".join(
                f"{_documents(demo)}\n\nQuestion: {demo['question']}\nAnswer: {demo['answers'][0]}\n\n"
                for demo in list(first_rows.values())[: self.shots]
            )
            yield HelmetPrompt(
                head="Use the given documents to write a concise and short answer to the question. "
                f"Write your answer in the following format:\nAnswer: [answer]\n\n{demos}",
                context=_documents(row),
                question=f"\n\nQuestion: {row['question']}",
                answer_prefix="\nAnswer:",
                references=texts(row["answers"]),
            )

    def _many_shots(self, task: str, limit: int | None) -> Iterator[HelmetPrompt]:
        """Texts to classify, after many that are; labels are numbers, dealt anew for each text."""
        labels, sizes = SHOT_TASKS[task]
        shots = sizes[LENGTHS.index(self.length)]
        train, test = (self._read(f"icl/{task}/{part}.jsonl", task) for part in ("train", "test"))
        wanted = 5 * self.samples_per_task
        if len(test) > wanted:
            shuffled = [test[at] for at in permutation(len(test), self.seed)]
            test = balanced(shuffled, wanted, self.seed)
        for row in test[:limit]:
            seed = (_hashed(row["text"]) + self.seed) % 2**31
            numbers = list(range(labels))
            random.Random(seed).shuffle(numbers)
            context = "\n\n".join(
                f"{shot['text']}\nlabel: {numbers[int(shot['label'])]}"
                for shot in balanced(train, shots, seed)
            )
            yield HelmetPrompt(
                head="Use the provided mapping from the text to label to assign a label to the text. "
                'Only output "label: {label}" and nothing else. \n\n',
                context=context,
                question=f"\n\n{row['text']}",
                answer_prefix="\nlabel:",
                references=(str(numbers[int(row["label"])]),),
            )

    def _rows(self, task: str) -> Rows:
        """The rows of a task of `FILES`."""
        file = FILES[task]
        return self._read(file.name.format(file.sizes[LENGTHS.index(self.length)]), task)

    def _read(self, name: str, task: str) -> Rows:
        """The rows of a file in the data folder."""
        fix = "path must be the suite's unpacked data folder"
        return file_rows(local_file(self.folder / name, f"helmet {task}", fix))


def balanced(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Any]:
    """`count` rows in rounds that hold every label once, in random order."""
    rng, by_label = random.Random(seed), dict[Any, list[Mapping[str, Any]]]()
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    rounds: list[list[Mapping[str, Any]]] = [[] for _ in range(math.ceil(count / max(1, len(by_label))))]
    for same in by_label.values():
        # Each row of a label comes as often as any other, up to one.
        indices = rng.sample(range(len(same)), len(rounds) % len(same))
        while len(indices) < len(rounds):
            indices += rng.sample(range(len(same)), min(len(rounds) - len(indices), len(same)))
        for part, index in zip(rounds, indices, strict=True):
            part.append(same[index])
    for part in rounds:
        rng.shuffle(part)
    return [row for part in rounds for row in part][:count]


def permutation(count: int, seed: int) -> list[int]:
    """The order in which `datasets` shuffles rows under a seed."""
    import numpy

    return [int(at) for at in numpy.random.default_rng(seed).permutation(count)]


def texts(answer: Any) -> tuple[str, ...]:
    """The answers of a row: a text, a list of texts or a list of lists."""
    if not isinstance(answer, list):
        return (str(answer),)
    return tuple(str(text) for part in answer for text in (part if isinstance(part, list) else [part]))


def _documents(row: Mapping[str, Any]) -> str:
    return "\n\n".join(
        f"Document (Title: {document['title']}): {document['text']}" for document in row["ctxs"]
    )


def _hashed(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
