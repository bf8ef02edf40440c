"""BABILong: facts of the bAbI tasks hidden in book text; where things and people are, who gave what to whom.

Source: Kuratov et al. 2024, arXiv 2406.10149; booydar/babilong at 7a6efee (Apache-2.0): prompts.py,
metrics.py, run_model_on_babilong.py.
Differs: the answer is scored twice, see `BabilongBenchmark.score`;
supporting facts are found again in the text (qa1, qa4, qa5).

Rows have the columns input, question, target: a local folder with `<length>/<task>.jsonl` (or .json,
.parquet, .csv), or the hub sets RMT-team/babilong (100 rows a task) and RMT-team/babilong-1k-samples (configs
are lengths, splits are tasks). Rows longer than the model's window are refused: the suite has no rule to cut
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks

TASKS = tuple(f"qa{number}" for number in range(1, 21))
"""All tasks that can be scored; the suite has prompts for the first ten."""
HEADLINE = TASKS[:5]
LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M", "10M")
MAX_NEW_TOKENS = 20
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


@dataclass(frozen=True)
class BabilongBenchmark(Benchmark):
    """Options of BABILong.

    Raises:
        ValueError: an unknown task or length.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(TASKS, "accuracy")

    tasks: tuple[str, ...] = HEADLINE
    length: str = "4k"
    """Nominal tokens of a context: 0k (facts alone), 1k … 10M."""
    path: str = ""
    """A folder with `<length>/<task>.jsonl`, or one file; empty: the hub."""
    hub: str = "RMT-team/babilong"
    """Hub data set; RMT-team/babilong-1k-samples has more rows a task."""
    revision: str = ""
    """Commit of the hub data set; empty: the newest. The suite names none."""
    chat_template: bool = True
    """Whether the prompt is a user message (the suite runs models both ways)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        check_tasks(self.tasks, TASKS[:10], "babilong")
        if self.length not in LENGTHS:
            raise ValueError(
                f"babilong: length={self.length!r} is not known; choose one of {', '.join(LENGTHS)}"
            )

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the rows task by task; see `Benchmark.samples`."""
        for task in self.tasks:
            what = f"babilong {task} {self.length}"
            if self.path:
                names = (f"{self.length}/{task}", f"{task}/{self.length}", f"data/{task}/{self.length}", task)
                rows, file = sources.local_rows(self.path, names, what)
                origin = {"source": file.name, "revision": None}
            else:
                rows, commit = sources.hub_rows(self.hub, self.length, task, self.revision, what)
                origin = {"source": self.hub, "revision": commit}
            if not rows:
                raise ValueError(f"{what}: {origin['source']} has no row")
            for position, row in enumerate(rows[:limit]):
                sample = self._sample(task, position, row, origin)
                prompt = (sample.context, sample.question)
                sources.check_window(
                    f"{what}, row {position},",
                    prompt,
                    MAX_NEW_TOKENS,
                    tokenizer,
                    window,
                    "choose a shorter length",
                )
                yield sample

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the answer names the target and no other label; labels of the question do not count.

        `accuracy` is the official rule: the first sentence, before "<context>" and "<example>", lower-cased,
        labels found anywhere in
        it. Two of its oddities lose right answers, so that `accuracy_repaired` differs: it also cuts at
        "Question" (officially searched with a capital letter after lower-casing, hence never found), and
        finds labels as whole words ("none" holds "one").
        """
        if not sample.references:
            return {"accuracy": 0.0, "accuracy_repaired": 0.0}
        target, question = str(sample.references[0]), str(sample.metadata.get("question", sample.question))
        sentence = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
        labels = [label.lower() for label in data()["labels"][sample.task]]
        official = {label for label in labels if label in sentence} - {
            label for label in labels if label in question.lower()
        }
        repaired = _words(sentence.split("question")[0], labels) - _words(question.lower(), labels)
        wanted = _parts(target)
        return {"accuracy": float(official == wanted), "accuracy_repaired": float(repaired == wanted)}

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows of the suite's prediction tables: target, output (empty where the model said nothing), question."""
        for line, row in rows:
            name = task if task is not None else row.get("task")
            if name not in TASKS:
                given = (
                    "no field 'task'; name it on the command line: babilong/TASK"
                    if name is None
                    else f"babilong has no task {name!r}"
                )
                raise ValueError(f"line {line}: {given}; its tasks are {', '.join(TASKS)}")
            if "output" not in row:
                raise ValueError(f"line {line}: the field 'output' is missing")
            target = sources.text_field(row, ["target"], f"line {line}")
            question = sources.text_field(row, ["question"], f"line {line}")
            output = row["output"] if isinstance(row["output"], str) else ""
            yield (
                Sample(f"{name}/{line}", name, "", question, (target,), metadata={"question": question}),
                output,
            )

    def averages(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """The mean over the chosen tasks, and the suite's headline, the mean over qa1 … qa5."""
        return {"average": [(task,) for task in self.tasks], "qa1-qa5": [(task,) for task in HEADLINE]}

    def _sample(self, task: str, position: int, row: Mapping[str, Any], origin: Mapping[str, Any]) -> Sample:
        where = f"babilong {task}, row {position}"
        text, question, target = (
            sources.text_field(row, [name], where) for name in ("input", "question", "target")
        )
        head, tail = (
            f"{data()['template'].format(**data()['prompts'][task])}\n\n<context>\n".lstrip(),
            "\n</context>\n\n",
        )
        text = text.strip()
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=head + text + tail,
            question=f"Question: {question}".strip(),
            references=(target,),
            max_new_tokens=MAX_NEW_TOKENS,
            evidence=tuple(
                (len(head) + start, len(head) + end)
                for start, end in find_facts(task, text, question, target)
            ),
            chat_template=self.chat_template,
            metadata={"question": question, "length": self.length, **origin},
        )


@cache
def data() -> dict[str, Any]:
    """Prompts and labels of the suite, `data/babilong.json`."""
    read: dict[str, Any] = json.loads(
        (Path(__file__).parent / "data" / "babilong.json").read_text(encoding="utf-8")
    )
    return read


def find_facts(task: str, text: str, question: str, target: str) -> list[tuple[int, int]]:
    """The sentence that answers a question of qa1, qa4 or qa5, as a span of the text; none where it was not found or for other tasks.

    The rows do not name their supporting facts. These three tasks have one each: the last sentence that says
    it.
    """
    if task == "qa1" and (asked := re.match(r"Where is (\w+)\?", question)):
        found = rf"\b{asked[1]} (?:\w+ ){{1,2}}to the {re.escape(target)}\."
    elif task == "qa4" and (
        asked := re.match(r"What is (?:the (\w+) (\w+) of|(\w+) of the (\w+))\?", question)
    ):
        one, side, other_side, other = asked.groups()
        left, side, right = (one, side, target) if one else (target, other_side, other)
        found = (
            rf"The (?:{left} is {side} of the {right}|{right} is {OPPOSITE.get(side, side)} of the {left})\."
        )
    else:
        found = _giving(question, target) if task == "qa5" else ""
    spans = [match.span() for match in re.finditer(found, text)] if found else []
    return spans[-1:]


def _giving(question: str, target: str) -> str:
    """Pattern of the sentence of qa5 (somebody gives something to somebody) that the question asks for."""
    give = r"(?:gave|handed|passed)"
    forms = [
        (r"What did (\w+) give to (\w+)\?", r"{0} {give} the {target} to {1}\."),
        (r"Who did (\w+) give the (\w+) to\?", r"{0} {give} the {1} to {target}\."),
        (r"Who gave the (\w+) to (\w+)\?", r"{target} {give} the {0} to {1}\."),
        (r"Who gave the (\w+)\?", r"{target} {give} the {0} to \w+\."),
        (r"Who received the (\w+)\?", r"\w+ {give} the {0} to {target}\."),
    ]
    for form, sentence in forms:
        if asked := re.match(form, question):
            return rf"\b{sentence.format(*asked.groups(), give=give, target=re.escape(target))}"
    return ""


def _parts(target: str) -> set[str]:
    """The labels of a target; only qa8 has several, while a target of qa19 ("n,e") is one label."""
    return set(target.lower().split(",")) if "," in target and len(target) > 3 else {target.lower()}


def _words(text: str, labels: Iterable[str]) -> set[str]:
    return {label for label in labels if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)}
