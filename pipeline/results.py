"""What the pipeline is asked and what it gives: requests, results with what was measured, and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.decode import Answer
from pipeline.prefill import CompressedContext, Variant
from pipeline.prompt import Question
from presses.base import BasePress


@dataclass(frozen=True)
class Result:
    """One variant's answer to one question, with what was measured.

    Attributes:
        variant: press and ratio.
        question: index of the question.
        answer: text, tokens, stop reason, seconds.
        context: what the variant kept.
        truncated: whether the context was cut to `max_context_tokens`.
        prefill_seconds: of the one forward pass over the context, shared by all variants.
        observe_seconds: share of it that this press spent observing.
    """

    variant: Variant
    question: int
    answer: Answer
    context: CompressedContext
    truncated: bool
    prefill_seconds: float
    observe_seconds: float

    @property
    def error(self) -> Exception | None:
        """Why the answer could not be written."""
        return self.answer.error


@dataclass(frozen=True)
class Failure:
    """A variant that could not be made, or a context that could not be read: no answer to this question.

    Attributes:
        variant: press and ratio.
        question: index of the question.
        error: what was raised.
        answer: empty, stop reason "error".
    """

    variant: Variant
    question: int
    error: Exception
    answer: Answer = field(default_factory=lambda: Answer(stop_reason="error"))


@dataclass(frozen=True)
class Request:
    """Questions about one context, for `CompressingPipeline.stream`; what the fields mean says calling the pipeline.

    `count_kept` asks besides for `CompressedContext.kept_by`: how many heads keep each token. `keep_caches`: whether results still hold
    the compressed caches when the answers are written; otherwise memory is freed, and what was measured of them stays.
    """

    context: str
    questions: Sequence[Question]
    press: BasePress | Sequence[Variant | tuple[BasePress, float]] | None = None
    query_aware: bool = False
    chat_template: bool = True
    max_context_tokens: int | None = None
    count_kept: bool = False
    keep_caches: bool = False


class Answers(dict[str, Any]):
    """`{"answer": …}` or `{"answers": […]}`, with everything measured in `results` (variant by variant, question by question)."""

    results: list[Result]


def storage_bytes(results: Sequence[Result | Failure]) -> int:
    """Bytes in memory of what the variants of a context keep, and have not released."""
    storages: dict[int, int] = {}
    for result in results:
        if isinstance(result, Result):
            storages |= result.context.storages()
    return sum(storages.values())


def release_finished(results: Sequence[Result | Failure]) -> None:
    """Release what variants keep of a context, of each once all its answers are written."""
    made = [result for result in results if isinstance(result, Result)]
    reading = {id(result.context) for result in made if not result.answer.stop_reason}
    for result in made:
        if id(result.context) not in reading:
            result.context.release()
