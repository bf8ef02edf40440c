r"""AIME 2025: 30 competition problems (I and II) whose answers are integers from 0 to 999.

The answers are long, for compression while decoding.

Source: MAA, American Invitational Mathematics Examination 2025; rows opencompass/AIME2025 (configs
    AIME2025-I, AIME2025-II; columns question, answer; not verified); prompt of QwenLM/Qwen2.5-Math README at
    a45202b.
Differs: as MATH-500, see there. One problem is 3.3 points, so draw several answers to each
    (samples_per_question; experiment=aime25 has the papers' settings).

`path=` is a `.jsonl` or table file with the columns question (or problem) and answer (or true_answer), or a
folder with `aime25.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.base import Benchmark, NumberedRows, Prediction, Sample, Tokenizer
from benchmarks.text.boxed_answers import PROMPTS, problem_sample, read_boxed_predictions, score_boxed
from benchmarks.text.sources import Table, hub_table, local_table

CONFIGS = ("AIME2025-I", "AIME2025-II")
"""Of the hub data set, in the order of the problems."""


@dataclass(frozen=True)
class Aime25Benchmark(Benchmark):
    """Options of AIME 2025.

    Raises:
        ValueError: an unknown task or prompt, or a limit below one token.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {"aime25": "accuracy"}

    tasks: tuple[str, ...] = ("aime25",)
    path: str = ""
    """A file of rows, or a folder with aime25.jsonl; empty: the hub."""
    hub: str = "opencompass/AIME2025"
    revision: str = ""
    """Commit of the hub data set; empty: the newest. No suite names one."""
    prompt: str = "boxed"
    """"boxed" (Qwen2.5-Math), "r_kv" or "lighteval"."""
    max_new_tokens: int = 32768
    """Tokens of an answer, fewer where the window ends earlier."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(self.metrics)
        self.check_choices(prompt=tuple(PROMPTS))
        self.check_at_least(max_new_tokens=1)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the problems, I before II; see `Benchmark.samples`."""
        table = self._table()
        for position, row in enumerate(table.rows[:limit]):
            yield problem_sample(
                "aime25",
                position,
                row,
                prompt=self.prompt,
                max_new_tokens=self.max_new_tokens,
                tokenizer=tokenizer,
                window=window,
                metadata=table.origin,
            )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the integer in the last box is the reference.

        `boxed` counts answers with a box alone, see `Math500Benchmark.score`.
        """
        return score_boxed(sample, prediction, integer)

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows with `prediction` (or predicted_answer, output, model_output, response) and `answer`."""
        self.check_tasks(self.metrics, [task or "aime25"])
        return read_boxed_predictions(rows, "aime25")

    def _table(self) -> Table:
        """The problems, both halves of them."""
        if self.path:
            return local_table(self.path, ("aime25", "test"), "aime25")
        halves = [hub_table(self.hub, config, "test", self.revision, "aime25") for config in CONFIGS]
        return halves[0]._replace(rows=[row for half in halves for row in half.rows])


def integer(answer: str) -> str | None:
    """An integer without dollar signs, commas and leading zeros ("$070$" is "70"); None for anything else."""
    digits = re.sub(r"[$,\s]|\\[!,]", "", answer)
    return (digits.lstrip("0") or "0") if re.fullmatch(r"[0-9]{1,20}", digits) else None
