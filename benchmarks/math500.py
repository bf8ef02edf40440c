r"""MATH-500: 500 competition problems whose answers are formulas in a box.

The answers are long, for compression while decoding.

Source: Lightman et al. 2023, arXiv 2305.20050; rows HuggingFaceH4/MATH-500; prompt of QwenLM/Qwen2.5-Math
    README at a45202b; normalisation of openai/prm800k prm800k/grading/math_normalize.py at 7ecc794.
Differs: the instruction follows the problem, where Qwen2.5-Math has it as system message, so that the problem
    can be the context; the last box is read with balanced braces; "$" around an answer and a fraction like
    \frac{270}7 are normalised too (no two of the 500 answers are judged otherwise by that).

`path=` is a `.jsonl` or table file with the columns problem (or question) and answer, or a folder with
`test.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.base import Benchmark, NumberedRows, Prediction, Sample, Tokenizer
from benchmarks.text.boxed_answers import PROMPTS, problem_sample, read_boxed_predictions, score_boxed
from benchmarks.text.sources import hub_table, local_table


@dataclass(frozen=True)
class Math500Benchmark(Benchmark):
    """Options of MATH-500.

    Raises:
        ValueError: an unknown task or prompt, or a limit below one token.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = {"math500": "accuracy"}

    tasks: tuple[str, ...] = ("math500",)
    path: str = ""
    """A file of rows, or a folder with test.jsonl; empty: the hub."""
    hub: str = "HuggingFaceH4/MATH-500"
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
        """Yield the problems; see `Benchmark.samples`."""
        if self.path:
            table = local_table(self.path, ("test", "math500"), "math500")
        else:
            table = hub_table(self.hub, None, "test", self.revision, "math500")
        for position, row in enumerate(table.rows[:limit]):
            known: list[str] = [name for name in ("subject", "level", "unique_id") if name in row]
            yield problem_sample(
                "math500",
                position,
                row,
                prompt=self.prompt,
                max_new_tokens=self.max_new_tokens,
                tokenizer=tokenizer,
                window=window,
                metadata={**{name: row[name] for name in known}, **table.origin},
            )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the last box equals the reference, both normalised.

        `accuracy` reads an answer without any box as a whole, so that a bare "70" counts; `boxed` does not.
        """
        return score_boxed(sample, prediction, normalize)

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Rows with `prediction` (or predicted_answer, output, model_output, response) and `answer`."""
        self.check_tasks(self.metrics, [task or "math500"])
        return read_boxed_predictions(rows, "math500")


def normalize(answer: str) -> str:
    r"""A formula in the form in which MATH compares answers.

    It has no units and no spacing, and \frac{a}{b} for every fraction.
    """
    text = answer.strip()
    if whole := re.fullmatch(r"\\text\{(.+?)\}", text):
        text = whole[1].strip()
    text = (
        text.replace("\n", "")
        .replace("\\!", "")
        .replace("\\\\", "\\")
        .replace("tfrac", "frac")
        .replace("dfrac", "frac")
    )
    for dropped in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(dropped, "")
    text = text.split("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    if text.count("=") == 1 and len(text.split("=")[0].strip()) <= 2:
        text = text.split("=")[1]
    text = re.sub(r"\\sqrt\s*([^\s{\\])", r"\\sqrt{\1}", text).replace(" ", "").strip("$")
    text = re.sub(r"\\frac([^{\\])", r"\\frac{\1}", text)
    text = re.sub(r"\\frac(\{[^{}]*\})([^{\\])", r"\\frac\1{\2}", text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
