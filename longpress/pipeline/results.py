"""What the pipeline is asked and what it gives: requests, results with what was measured, and failures."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.decode import Decoder
from longpress.pipeline.fidelity import measure
from longpress.pipeline.prompt import Question
from longpress.pipeline.rows import Answer
from longpress.pipeline.variants import Variant
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
        joint_tokens: tokens at the end of the context that are read with the question, not compressed, since
            one token of the whole prompt stands across the joint.
    """

    variant: Variant
    question: int
    answer: Answer
    context: CompressedContext
    truncated: bool
    prefill_seconds: float
    observe_seconds: float
    joint_tokens: int = 0

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
    """Questions about one context, for `CompressingPipeline.stream`; see there what the fields mean.

    `count_kept` asks besides for `CompressedContext.kept_by`: how many heads keep each token. `keep_caches`:
    whether results still hold the compressed caches when the answers are written; otherwise memory is freed,
    and what was measured of them stays.
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
    """`{"answer": …}` or `{"answers": […]}`; `results` holds everything that was measured.

    Variant by variant, question by question.
    """

    results: list[Result]


def storage_bytes(results: Sequence[Result | Failure]) -> int:
    """Bytes in memory of what variants keep and have not released, and of questions kept."""
    storages: dict[int, int] = {}
    for result in results:
        if isinstance(result, Result):
            storages |= result.context.storages() | result.context.state_storages()
    return sum(storages.values()) + sum(
        result.answer.after.bytes for result in results if result.answer.after is not None
    )


def release_finished(results: Sequence[Result | Failure]) -> None:
    """Release what variants keep of a context, of each once all its answers are written and measured."""
    made = [result for result in results if isinstance(result, Result)]
    reading = {id(one.context) for one in made if not one.answer.stop_reason or one.answer.after is not None}
    for result in made:
        if id(result.context) not in reading:
            result.context.release()


@dataclass(frozen=True)
class ContextResults:
    """A context at work: its results, and per question what fidelity compares with.

    Attributes:
        results: what was asked for.
        full: per question the full cache's result, which may be one of `results`; empty where fidelity is not
            measured.
        references: per question.
        keep_caches: see `Request`.
    """

    results: list[Result | Failure]
    full: Sequence[Result | Failure] = ()
    references: Sequence[list[int]] = ()
    keep_caches: bool = False

    @property
    def finished(self) -> bool:
        """Whether every answer is written."""
        return all(result.answer.stop_reason for result in (*self.results, *self.full))

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return storage_bytes([*self.results, *self.full])

    def release(self) -> None:
        """Free what is no longer read, where results need not hold it."""
        if not self.keep_caches:
            release_finished([*self.results, *self.full])

    def interrupted(self) -> list[Result | Failure]:
        """The results as they are; where fidelity is still to be measured, none counts as written."""
        if self.full:
            for result in self.results:
                result.answer.stop_reason = ""
        return self.results

    def measured(self, decoder: Decoder) -> list[Result | Failure]:
        """The results, with fidelity where there is something to compare with."""
        for full, reference in zip(self.full, self.references, strict=True):
            answers = [result.answer for result in self.results if result.question == full.question]
            try:
                measure(decoder, full.answer, answers, reference)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)
                warnings.warn(
                    f"fidelity is missing, the answers are there: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
        for result in (*self.results, *self.full):
            result.answer.after = None  # its memory is another context's
        self.release()
        return self.results
