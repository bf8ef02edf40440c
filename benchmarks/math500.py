r"""MATH-500: 500 competition problems whose answers are formulas in a box; long answers, for compression while decoding.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks import sources
from benchmarks.base import Benchmark, Sample, Tokenizer, check_tasks
from benchmarks.metrics import last_boxed

PROMPTS = {
    "boxed": ("{problem}", "\n\nPlease reason step by step, and put your final answer within \\boxed{}."),
    "r_kv": (
        "You are given a math problem.\n\nProblem: {problem}\n\n",
        " You need to solve the problem step by step. First, you need to provide the chain-of-thought, then provide the final answer."
        "\n\n Provide the final answer in the format: Final answer:  \\boxed{}",
    ),
    "lighteval": (
        "\nSolve the following math problem efficiently and clearly.  The last line of your response should be of the following format: "
        "'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is just the final number "
        "or expression that solves the problem. Think step by step before answering.\n\n{problem}",
        "\n",
    ),
}
"""Prompt -> what is read as context ({problem} is the problem), and what follows it. r_kv: Zefan-Cai/R-KV run_math.py at d15c976;
lighteval: huggingface/lighteval tasks/aime.py at 3fd1526."""


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
        check_tasks(self.tasks, tuple(self.metrics), "math500")
        check_prompt("math500", self.prompt, self.max_new_tokens)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the problems; see `Benchmark.samples`."""
        if self.path:
            rows, file = sources.local_rows(self.path, ("test", "math500"), "math500")
            origin = {"source": file.name, "revision": None}
        else:
            rows, commit = sources.hub_rows(self.hub, None, "test", self.revision, "math500")
            origin = {"source": self.hub, "revision": commit}
        if not rows:
            raise ValueError(f"math500: {origin['source']} has no row")
        for position, row in enumerate(rows[:limit]):
            where = f"math500, row {position}"
            facts: dict[str, Any] = {
                name: row[name] for name in ("subject", "level", "unique_id") if name in row
            }
            yield problem_sample(
                f"math500/{position}",
                sources.text_field(row, ["problem", "question"], where),
                str(sources.field(row, ["answer", "true_answer"], where)),
                self.prompt,
                fit_answer(self.prompt, row, self.max_new_tokens, tokenizer, window, where),
                {**facts, **origin},
            )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the last box equals the reference, both normalised; `boxed` counts answers with a box alone.

        `accuracy` reads an answer without any box as a whole, so that a bare "70" counts; `boxed` does not.
        """
        return score_boxed(sample, prediction, normalize)

    def read_predictions(
        self, rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None
    ) -> Iterator[tuple[Sample, str]]:
        """Rows with `prediction` (or predicted_answer, output, model_output, response) and `answer`."""
        return read_rows(rows, task, "math500")


def check_prompt(name: str, prompt: str, max_new_tokens: int) -> None:
    """Refuse an unknown prompt and an answer without tokens.

    Raises:
        ValueError: what was given and what exists.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"{name}: prompt={prompt!r} is not known; choose one of {', '.join(PROMPTS)}")
    if max_new_tokens < 1:
        raise ValueError(f"{name}: max_new_tokens={max_new_tokens} must be at least 1")


def fit_answer(
    prompt: str, row: Mapping[str, Any], wanted: int, tokenizer: Tokenizer, window: int, where: str
) -> int:
    """Tokens an answer may have: `wanted`, or what the window leaves (64 are kept for a chat template).

    Raises:
        ValueError: the problem leaves no room for an answer.
    """
    problem = sources.text_field(row, ["problem", "question"], where)
    left = window - 64 - sources.count_tokens(tokenizer, problem, *PROMPTS[prompt])
    if left < 1:
        raise ValueError(
            f"{where}: the problem leaves no room for an answer in the model's window of {window} tokens"
        )
    return min(wanted, left)


def problem_sample(
    identifier: str, problem: str, answer: str, prompt: str, max_new_tokens: int, metadata: Mapping[str, Any]
) -> Sample:
    """A problem as context, the instruction as question."""
    context, question = PROMPTS[prompt]
    return Sample(
        id=identifier,
        task=identifier.split("/")[0],
        context=context.replace("{problem}", problem),
        question=question,
        references=(answer,),
        max_new_tokens=max_new_tokens,
        metadata={"prompt": prompt, **metadata},
    )


def score_boxed(sample: Sample, prediction: str, normalized: Any) -> dict[str, float]:
    """`accuracy` and `boxed` of an answer under a normalisation that gives None for what is no answer."""
    wanted = {normalized(str(reference)) for reference in sample.references} - {None, ""}
    box = last_boxed(prediction)
    boxed = box is not None and normalized(box) in wanted
    return {
        "accuracy": float(boxed or (box is None and normalized(prediction) in wanted)),
        "boxed": float(boxed),
    }


def read_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]], task: str | None, name: str
) -> Iterator[tuple[Sample, str]]:
    """Prediction rows of suites with one task and one boxed answer.

    Raises:
        ValueError: an unknown task, or a row without prediction or answer.
    """
    if task not in (None, name):
        raise ValueError(f"{name} has no task {task!r}; its task is {name}")
    for line, row in rows:
        where = f"line {line}"
        prediction = sources.field(
            row, ["prediction", "predicted_answer", "output", "model_output", "response"], where
        )
        answer = str(sources.field(row, ["answer", "true_answer", "ground_truth"], where))
        yield (
            Sample(f"{name}/{line}", name, "", "", (answer,)),
            str(prediction[0] if isinstance(prediction, list) and prediction else prediction),
        )


def normalize(answer: str) -> str:
    r"""A formula in the form in which MATH compares answers: no units, no spacing, \frac{a}{b} for every fraction."""
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
