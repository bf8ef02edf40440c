"""Which context is read when, and which rows are decoded together."""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from kvcache.matmul import fast_products
from longpress.models.host_memory import return_freed_memory
from longpress.pipeline.decode import Decoder
from longpress.pipeline.memory import WIDE, MemoryPlan
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt
from longpress.pipeline.reader import Reader, Reading, variants_of
from longpress.pipeline.results import ContextResults, Failure, Request, Result
from longpress.pipeline.variants import Variant
from presses.none import NonePress

THIN = 16
"""Unfinished rows below which the next context is read in any case, so that its rows join them."""


class Scheduler:
    """Answers requests one after the other, with as many rows decoded together as memory allows."""

    def __init__(
        self,
        reader: Reader,
        decoder: Decoder,
        options: PipelineOptions,
        plan: Callable[[Request], MemoryPlan],
        prompt: Callable[[bool], Prompt],
        room: float,
    ) -> None:
        """Nothing is read yet.

        Args:
            reader: reads contexts.
            decoder: an empty one.
            options: of the pipeline.
            plan: the memory that a request takes.
            prompt: the text around a context, with or without the chat template.
            room: bytes that a plan may total before caches are offloaded.
        """
        self.reader, self.decoder, self.options = reader, decoder, options
        self.plan, self.prompt, self.room = plan, prompt, room
        self.max_context_bytes = int(options.max_context_gb * 2**30)
        self.pending: deque[ContextResults] = deque()

    def stream(self, requests: Iterable[Request]) -> Generator[list[Result | Failure], None, None]:
        """Results of every request, in order; see `CompressingPipeline.stream`."""
        try:
            for request in requests:
                if not request.questions:
                    raise ValueError("questions=[] asks nothing; give at least one question")

                # Write on what is held, until the next context may be read beside it.
                if self.pending:
                    self._make_room(request)
                yield from self._finished(leave=self.decoder.unfinished)

                # Read it; alone, where there was no memory for it beside the others.
                context = self._read(request)
                if self.pending and any(
                    isinstance(result.error, torch.OutOfMemoryError) for result in context.results
                ):
                    yield from self._finished()
                    context = self._read(request)
                return_freed_memory()
                self.pending.append(context)
                del context

                # Decode until so few rows are left that those of another context should join them.
                yield from self._finished(leave=self._rows_to_leave())
                for held in self.pending:
                    held.release()
            yield from self._finished()
        except KeyboardInterrupt:
            yield from (context.interrupted() for context in self.pending)
            raise

    def _rows_to_leave(self) -> int:
        """Unfinished rows that may wait for the next context, which is taken to be as large as the last."""
        held = [context.bytes for context in self.pending]
        if sum(held) + held[-1] <= self.max_context_bytes:
            return WIDE
        return min(THIN, len(self.pending[-1].results) // 2)

    def _finished(self, leave: int = 0) -> Iterator[list[Result | Failure]]:
        """Decode until at most `leave` rows are unfinished.

        Gives every context once it and those before it are finished.         What is given is recorded: a
        killed process loses only what was at work.
        """
        while True:
            while self.pending and self.pending[0].finished:
                yield self.pending.popleft().measured(self.decoder)
            if self.decoder.unfinished <= leave:
                return
            self.decoder.run(leave=max(leave, self.decoder.unfinished - 1))

    def _make_room(self, request: Request) -> None:
        """Decode what is pending until the next context may be read beside it."""
        try:
            needed = self.plan(request).reading
        except Exception:  # reading it will fail in the same way, and say so
            needed = 0
        while (left := self.decoder.unfinished) and self._held() + needed > self.max_context_bytes:
            self.decoder.run(leave=left // 2)
            for context in self.pending:
                context.release()

    def _held(self) -> int:
        return sum(context.bytes for context in self.pending)

    def _offloads(self, request: Request) -> bool:
        """Whether what is kept of a request's context is to lie in host memory."""
        try:
            return self.room < math.inf and self.plan(request).on_host > 0
        except Exception:  # what cannot be planned will fail when it is read, and say so
            return self.room == 0

    def _read(self, request: Request) -> ContextResults:
        """Read the context of a request and queue its rows; the answers are written by the decoder."""
        wanted = len(variants_of(request.press))
        variants = with_full_cache(request, self.options.fidelity)
        if len(variants) > wanted:
            request = replace(request, press=variants)
        prompt, n_questions = self.prompt(request.chat_template), len(request.questions)

        # In query-aware mode every question is read with a context of its own.
        by_place: dict[tuple[int, int], Result | Failure] = {}
        for at in range(n_questions) if request.query_aware else [None]:
            for readings in self._readings(prompt, request, at, variants):
                for number, reading in enumerate(readings):
                    for result in self._queued(prompt, reading):
                        by_place[number, result.question] = result
        results = [by_place[place] for place in sorted(by_place)]  # by variant, then by question

        full = next((at for at, variant in enumerate(variants) if variant.is_full), None)
        if not self.options.fidelity or full is None:
            return ContextResults(results, keep_caches=request.keep_caches)
        references = [
            prompt.reference_ids(question.text, question.answer_prefix, question.reference)[
                : question.max_new_tokens
            ]
            for question in request.questions
        ]
        of_full_cache = results[full * n_questions : (full + 1) * n_questions]
        return ContextResults(results[: wanted * n_questions], of_full_cache, references, request.keep_caches)

    def _readings(
        self, prompt: Prompt, request: Request, at: int | None, variants: Sequence[Variant]
    ) -> list[list[Reading]]:
        """What every variant keeps of the context, per reading of it; where it could not be read, why."""
        try:
            with fast_products():
                return self.reader.read(prompt, request, at, self._offloads(request))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed prefill
            asked = list(range(len(request.questions))) if at is None else [at]
            return [[Reading(variant, error, asked) for variant in variants]]

    def _queued(self, prompt: Prompt, reading: Reading) -> list[Result | Failure]:
        """The results of a variant, question by question, whose answers the decoder will write."""
        if isinstance(reading.kept, Exception):
            return [Failure(reading.variant, question, reading.kept) for question in reading.questions]
        answers = self.decoder.add(prompt, reading.rows)
        return [
            Result(
                reading.variant,
                question,
                answer,
                reading.kept,
                reading.truncated,
                reading.seconds,
                reading.observe_seconds,
                reading.joint,
            )
            for question, answer in zip(reading.questions, answers, strict=True)
        ]


def with_full_cache(request: Request, fidelity: bool) -> list[Variant]:
    """The variants of a request, and the full cache behind them where fidelity needs it."""
    variants = variants_of(request.press)
    compared = fidelity and isinstance(request.press, Sequence)
    if compared and not any(variant.is_full for variant in variants):
        variants.append(Variant(NonePress()))
    return variants
