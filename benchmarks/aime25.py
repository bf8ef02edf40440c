r"""AIME 2025: 30 competition problems (I and II) whose answers are integers from 0 to 999; long answers, for compression while decoding.

Source: MAA, American Invitational Mathematics Examination 2025; rows opencompass/AIME2025 (configs
    AIME2025-I, AIME2025-II; columns question, answer; not verified); prompt of QwenLM/Qwen2.5-Math README at
    a45202b.
Differs: as MATH-500, see there. One problem is 3.3 points, so draw several answers a problem where decoding
is sampled.

`path=` is a `.jsonl` or table file with the columns question (or problem) and answer (or true_answer), or a
folder with `aime25.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks import math500, sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks

CONFIGS = ("AIME2025-I", "AIME2025-II")


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
        check_tasks(self.tasks, tuple(self.metrics), "aime25")
        math500.check_prompt("aime25", self.prompt, self.max_new_tokens)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the problems, I before II; see `Benchmark.samples`."""
        if self.path:
            rows, file = sources.local_rows(self.path, ("aime25", "test"), "aime25")
            origin = {"source": file.name, "revision": None}
        else:
            parts = [
                sources.hub_rows(self.hub, config, "test", self.revision, "aime25") for config in CONFIGS
            ]
            rows = [row for part, _ in parts for row in part]
            origin = {"source": self.hub, "revision": parts[0][1]}
        if not rows:
            raise ValueError(f"aime25: {origin['source']} has no row")
        for position, row in enumerate(rows[:limit]):
            where = f"aime25, row {position}"
            yield math500.problem_sample(
                f"aime25/{position}",
                sources.text_field(row, ["problem", "question"], where),
                str(sources.field(row, ["answer", "true_answer"], where)),
                self.prompt,
                math500.fit_answer(self.prompt, row, self.max_new_tokens, tokenizer, window, where),
                origin,
            )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the integer in the last box is the reference; `boxed` counts answers with a box alone, see `Math500Benchmark.score`."""
        return math500.score_boxed(sample, prediction, integer)

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows with `prediction` (or predicted_answer, output, model_output, response) and `answer`."""
        return math500.read_rows(rows, task, "aime25")


def integer(answer: str) -> str | None:
    """An integer without dollar signs, commas and leading zeros ("$070$" is "70"); None for anything else."""
    digits = re.sub(r"[$,\s]|\\[!,]", "", answer)
    return (digits.lstrip("0") or "0") if re.fullmatch(r"[0-9]{1,20}", digits) else None
