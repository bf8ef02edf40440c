"""Competition problems whose answer stands in a box: what MATH-500 and AIME 2025 have in common.

Source: QwenLM/Qwen2.5-Math README at a45202b (boxed); Zefan-Cai/R-KV run_math.py at d15c976 (r_kv);
    huggingface/lighteval tasks/aime.py at 3fd1526 (lighteval).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.base import NumberedRows, Prediction, PromptParts, Sample, Tokenizer
from benchmarks.text.fields import field, text_field
from benchmarks.text.token_counts import prompt_tokens

PROBLEM = ("problem", "question")
"""Names of the field that holds the problem."""

ANSWER = ("answer", "true_answer")
"""Names of the field that holds the answer."""


class ProblemPrompt(NamedTuple):
    """A prompt around a problem, for which `{problem}` stands.

    Attributes:
        context: what may be compressed.
        question: what follows it.
    """

    context: str
    question: str


PROMPTS = {
    "boxed": ProblemPrompt(
        "{problem}", "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    ),
    "r_kv": ProblemPrompt(
        "You are given a math problem.\n\nProblem: {problem}\n\n",
        " You need to solve the problem step by step. First, you need to provide the chain-of-thought, "
        "then provide the final answer."
        "\n\n Provide the final answer in the format: Final answer:  \\boxed{}",
    ),
    "lighteval": ProblemPrompt(
        "\nSolve the following math problem efficiently and clearly.  "
        "The last line of your response should be of the following format: "
        "'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
        "where ANSWER is just the final number or expression that solves the problem. "
        "Think step by step before answering.\n\n{problem}",
        "\n",
    ),
}
"""Name -> prompt."""


def problem_sample(
    task: str,
    position: int,
    row: Mapping[str, Any],
    *,
    prompt: str,
    max_new_tokens: int,
    tokenizer: Tokenizer,
    window: int,
    metadata: Mapping[str, Any],
) -> Sample:
    """A problem as context, the instruction as question.

    Args:
        task: of the sample.
        position: of the row.
        row: with the problem and its answer.
        prompt: a name of `PROMPTS`.
        max_new_tokens: tokens of the answer, fewer where the window ends earlier.
        tokenizer: of the model under test.
        window: its context window in tokens.
        metadata: of the sample, besides the prompt's name.

    Raises:
        ValueError: the row lacks a field, or the problem leaves no room for an answer.
    """
    where = f"{task}, row {position}"
    problem, answer = text_field(row, *PROBLEM, where=where), str(field(row, *ANSWER, where=where))
    context, question = PROMPTS[prompt]
    context = context.replace("{problem}", problem)
    room = window - prompt_tokens(tokenizer, PromptParts(context, question, ""), chat_template=True)
    if room < 1:
        raise ValueError(
            f"{where}: the problem leaves no room for an answer in the model's window of {window} tokens"
        )
    return Sample(
        id=f"{task}/{position}",
        task=task,
        context=context,
        question=question,
        references=(answer,),
        max_new_tokens=min(max_new_tokens, room),
        metadata={"prompt": prompt, **metadata},
    )


def score_boxed(sample: Sample, prediction: str, normalize: Callable[[str], str | None]) -> dict[str, float]:
    """Whether the last box equals a reference.

    Args:
        sample: with the references.
        prediction: the answer.
        normalize: brings answers into the form in which they are compared; None for what is no answer.

    Returns:
        `accuracy` reads an answer without any box as a whole, `boxed` counts it as wrong.
    """
    wanted = {normalize(str(reference)) for reference in sample.references} - {None, ""}
    box = last_boxed(prediction)
    boxed = box is not None and normalize(box) in wanted
    return {
        "accuracy": float(boxed or (box is None and normalize(prediction) in wanted)),
        "boxed": float(boxed),
    }


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} (or \fbox{…}) with balanced braces holds; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end]
    return None


def read_boxed_predictions(rows: NumberedRows, task: str) -> Iterator[Prediction]:
    """Prediction rows of a suite with one task.

    Raises:
        ValueError: a row without prediction or answer.
    """
    for line, row in rows:
        where = f"line {line}"
        names = ("prediction", "predicted_answer", "output", "model_output", "response")
        prediction = field(row, *names, where=where)
        answer = str(field(row, *ANSWER, "ground_truth", where=where))
        text = prediction[0] if isinstance(prediction, list) and prediction else prediction
        yield Prediction(Sample(f"{task}/{line}", task, "", "", (answer,)), str(text))
