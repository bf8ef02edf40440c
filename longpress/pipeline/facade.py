"""Text in, text out, through compressed caches."""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kvcache.architecture import check_model
from kvcache.compressing import Framing, chunking
from kvcache.matmul import fast_products
from kvcache.observation import cache_keyword
from kvcache.selection import Threshold
from longpress.models.host_memory import return_freed_memory
from longpress.models.loading import eos_token_ids
from longpress.pipeline.chunked import check_prefill, read_in_chunks
from longpress.pipeline.clock import now
from longpress.pipeline.decode import Decoder
from longpress.pipeline.memory import WIDE, MemoryPlan, Shape, check_offload, memory_plan, read_in_place, room
from longpress.pipeline.prefill import (
    CompressedContext,
    Onlooker,
    PrefilledContext,
    Variant,
    compressed_cache,
)
from longpress.pipeline.prompt import Prompt, Question
from longpress.pipeline.results import Answers, ContextResults, Failure, Request, Result
from longpress.pipeline.rows import Row
from presses.base import BasePress
from presses.none import NonePress

MAX_BATCH_BYTES = 2 * 2**30
"""Default bound on the tails and work space of one decode batch."""

MAX_CONTEXT_BYTES = 5 * 2**29
"""Default bound on the contexts held for decoding together, the one being read included; a single context may exceed it."""

THIN = 16
"""Unfinished rows below which the next context is read in any case, so that its rows join them."""


@dataclass(frozen=True)
class _Reading:
    """What one variant keeps of a context that was read, or what was raised instead, and the rows that will be written on it."""

    variant: Variant
    kept: CompressedContext | Exception
    rows: Sequence[Row] = ()
    truncated: bool = False
    seconds: float = 0.0
    observe_seconds: float = 0.0


class CompressingPipeline:
    """A model and its tokenizer, answering questions about contexts that presses compress.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        eos_ids: tokens that end an answer.
        window: context window of the model in tokens, None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        window: int | None = None,
        prefill_chunk: int | None = None,
        prefill: str = "shared",
        max_batch_bytes: int = MAX_BATCH_BYTES,
        max_context_bytes: int = MAX_CONTEXT_BYTES,
        fidelity: bool = False,
        offload: str = "auto",
    ) -> None:
        """A pipeline over a loaded model.

        Args:
            model: of transformers; put into evaluation mode.
            tokenizer: of transformers.
            window: context window in tokens; by default the model's own. A prompt that fits it with its
                longest answer is read whole; a longer one is refused (in a sweep, a failed cell), and cut
                only by the benchmark's own rule or `max_context_tokens`.
            prefill_chunk: tokens per chunk of the prefill (exact; bounds activation memory), None for one
                piece.
            prefill: "shared": one exact prefill for all variants; "chunked": every variant reads the context
                by itself, and compresses after each `prefill_chunk` tokens, so that the peak of the cache
                shrinks too.
            max_batch_bytes: bound on the tails and work space of one decode batch.
            max_context_bytes: bound on the contexts held so that their rows are decoded together; a single
                one may exceed it.
            fidelity: measure how far every variant of a list moves the model (see `fidelity.py`), beside the
                answers; where no variant keeps the full cache, it is answered from as well.
            offload: "auto": what variants keep of a context lies in host memory where its plan, the weights
                included, is more than the memory of the GPUs that hold the model; each layer's entries are
                moved to its GPU at every read, which is slow but exact. "always" or "never", whatever the
                plan.

        Raises:
            ValueError: another `prefill` or `offload`, a chunked one without chunks, or a model that would be
                compressed wrongly.
        """
        check_prefill(prefill, prefill_chunk)
        check_offload(offload)
        check_model(model)
        self.model, self.tokenizer = model.eval(), tokenizer
        config: Any = model.config
        self.window = window or getattr(config.get_text_config(), "max_position_embeddings", None)
        self.prefill, self.prefill_chunk = prefill, prefill_chunk
        self.max_batch_bytes, self.max_context_bytes = max_batch_bytes, max_context_bytes
        self.fidelity = fidelity
        self.room = room(model, offload)
        self.eos_ids = eos_token_ids(model, tokenizer)
        self.shape = Shape.of(model)
        self._prompts: dict[bool, Prompt] = {}

    def __call__(
        self,
        context: str,
        question: str | Question | None = None,
        questions: Sequence[str | Question] | None = None,
        answer_prefix: str = "",
        press: BasePress | Sequence[Variant | tuple[BasePress, float]] | None = None,
        max_new_tokens: int = 50,
        *,
        query_aware: bool = False,
        chat_template: bool = True,
        max_context_tokens: int | None = None,
    ) -> Answers:
        """Answer questions about a context that is read once.

        Args:
            context: the text to compress.
            question: one question, or
            questions: several; each is answered as if it were the only one.
            answer_prefix: beginning of every answer, for questions given as text.
            press: a press with its ratio, a list of variants `(press, ratio)`, or None for the full cache.
            max_new_tokens: limit of every answer, for questions given as text.
            query_aware: compress context and question together; then every question needs a prefill of its
                own.
            chat_template: whether to use the tokenizer's chat template, if it has one.
            max_context_tokens: cut longer contexts to their first so many tokens, which the results say; by
                default a prompt that exceeds the model's window is refused.

        Returns:
            `{"answer": text}` for `question`, `{"answers": [text, …]}` for `questions`; for a list of
            variants, a list of such per variant. `.results` holds what was measured.

        Raises:
            ValueError: no question, an empty context, a prompt beyond the window, a budget that was not met.
        """
        if (question is None) == (questions is None):
            raise ValueError("give either question= or questions=")
        asked = [
            self._question(one, answer_prefix, max_new_tokens)
            for one in ([question] if questions is None else questions)
        ]
        request = Request(
            context, asked, press, query_aware, chat_template, max_context_tokens, keep_caches=True
        )
        results: list[Result] = []
        for result in next(self.stream([request])):
            if result.error is not None:
                raise result.error
            assert isinstance(result, Result)
            results.append(result)
        texts = [
            [result.answer.text for result in results[at : at + len(asked)]]
            for at in range(0, len(results), len(asked))
        ]
        single = [row[0] for row in texts] if questions is None else texts
        answers = Answers(
            {
                "answer" if questions is None else "answers": single
                if isinstance(press, Sequence)
                else single[0]
            }
        )
        answers.results = results
        return answers

    def sweep(
        self,
        context: str,
        questions: Sequence[str | Question],
        variants: Sequence[Variant | tuple[BasePress, float]],
        **options: Any,
    ) -> list[list[str]]:
        """All answers of all variants from one prefill: `answers[variant][question]`. Options as for calling the pipeline."""
        answers: list[list[str]] = self(context, questions=questions, press=list(variants), **options)[
            "answers"
        ]
        return answers

    def token_spans(self, context: str, chat_template: bool = True) -> list[tuple[int, int]]:
        """Characters [start, end) of `context` that each position of its cache stands for; negative within the chat template."""
        return self._prompt(chat_template).token_spans(context)

    def stream(self, requests: Iterable[Request]) -> Generator[list[Result | Failure], None, None]:
        """Results of every request, in order, variant by variant and question by question.

        Contexts are read one after the other, and the rows of several are decoded together: as many as
        `max_context_bytes` holds, up to `WIDE` rows. Once few rows of the contexts held are still being
        written, the next one is read and its rows join them, so that batches stay full; what is written does
        not depend on it. Before a context is read, its bytes are planned (`memory_plan`), and what is held is
        written to its end as far as both would exceed the bound.

        What raises fails alone: a press spoils its own variants, a context its own questions, and the rest
        goes on. After a KeyboardInterrupt the contexts at work are given as they are, unfinished answers
        without a stop reason (all of them where fidelity is measured, which needs the whole context), before
        it goes on.

        Raises:
            ValueError: no question or no variant.
        """
        decoder = Decoder(self.model, self.eos_ids, self.max_batch_bytes, keep_questions=self.fidelity)
        pending: deque[ContextResults] = deque()
        try:
            for request in requests:
                if not request.questions:
                    raise ValueError("questions=[] asks nothing; give at least one question")
                if pending:
                    self._make_room(decoder, pending, request)
                yield from self._written(decoder, pending, leave=decoder.unfinished)
                context = self._answers(decoder, request)
                if pending and any(
                    isinstance(result.error, torch.OutOfMemoryError) for result in context.results
                ):
                    yield from self._written(decoder, pending)
                    context = self._answers(decoder, request)  # alone it may fit
                return_freed_memory()
                pending.append(context)
                del context
                held = [one.bytes for one in pending]
                roomy = (
                    sum(held) + held[-1] <= self.max_context_bytes
                )  # the next context is taken to be as large as this one
                yield from self._written(
                    decoder, pending, leave=WIDE if roomy else min(THIN, len(pending[-1].results) // 2)
                )
                for one in pending:
                    one.release()
            yield from self._written(decoder, pending)
        except KeyboardInterrupt:
            yield from (context.interrupted() for context in pending)
            raise

    def _written(
        self, decoder: Decoder, pending: deque[ContextResults], leave: int = 0
    ) -> Iterator[list[Result | Failure]]:
        """Write until at most `leave` rows are unfinished, and give every context once it and those before it are finished.

        What is given is recorded: a killed process loses only what was at work.
        """
        while True:
            while pending and pending[0].finished:
                yield pending.popleft().measured(decoder)
            if decoder.unfinished <= leave:
                return
            decoder.run(leave=max(leave, decoder.unfinished - 1))

    def _make_room(self, decoder: Decoder, pending: Sequence[ContextResults], request: Request) -> None:
        """Write on what is pending until the next context may be read beside it."""
        try:
            needed = self.plan(request).reading
        except Exception:  # reading it will fail in the same way, and say so
            needed = 0
        while (left := decoder.unfinished) and sum(
            context.bytes for context in pending
        ) + needed > self.max_context_bytes:
            decoder.run(leave=left // 2)
            for context in pending:
                context.release()

    def plan(self, request: Request, contexts: int = 1) -> MemoryPlan:
        """The memory that the answers to a request take, or to so many like it; of a model that is not loaded, without offloading.

        Whether a context is offloaded is decided for it alone: contexts are held together only as far as they
        fit.
        """
        prompt = self._prompt(request.chat_template)
        asked = request.questions
        tokens = len(prompt.context_ids(request.context))
        tails = [len(prompt.question_ids(one.text, one.answer_prefix)) for one in asked]
        if request.query_aware:
            tokens += max(tails)
        bound = partial(
            memory_plan,
            self.shape,
            min(tokens, request.max_context_tokens or tokens),
            self._to_read(request),
            max(tail + one.max_new_tokens for tail, one in zip(tails, asked, strict=True)),
            questions=len(asked),
            query_aware=request.query_aware,
            max_batch_bytes=self.max_batch_bytes,
            max_context_bytes=self.max_context_bytes,
            prefill_chunk=self.prefill_chunk,
            chunked=self.prefill == "chunked",
        )
        return bound(contexts=contexts, offload=bound().total > self.room)

    def _offloads(self, request: Request) -> bool:
        """Whether what is kept of a request's context is to lie in host memory."""
        try:
            return self.room < math.inf and self.plan(request).on_host > 0
        except Exception:  # what cannot be planned will fail when it is read, and say so
            return self.room == 0

    def _to_read(self, request: Request) -> list[Variant]:
        """The variants of a request, and the full cache behind them where fidelity is measured and none of them keeps it."""
        variants = _variants(request.press)
        if (
            self.fidelity
            and isinstance(request.press, Sequence)
            and not any(variant.is_full for variant in variants)
        ):
            variants.append(Variant(NonePress()))
        return variants

    def _answers(self, decoder: Decoder, request: Request) -> ContextResults:
        """Read the context of a request and queue its rows; the answers are written by the decoder."""
        variants, asked, wanted = (
            self._to_read(request),
            len(request.questions),
            len(_variants(request.press)),
        )
        full = next((at for at, variant in enumerate(variants) if variant.is_full), None)
        if len(variants) > wanted:
            request = replace(request, press=variants)
        prompt = self._prompt(request.chat_template)
        results: list[Result | Failure] = []
        for at in range(len(request.questions)) if request.query_aware else [None]:
            indices = range(len(request.questions)) if at is None else [at]
            try:
                with fast_products():
                    readings = self._read(prompt, request, at)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed prefill
                readings = [_Reading(variant, error) for variant in variants]
            for reading in readings:
                if isinstance(reading.kept, Exception):
                    results += [Failure(reading.variant, q, reading.kept) for q in indices]
                    continue
                measured = (reading.kept, reading.truncated, reading.seconds, reading.observe_seconds)
                answers = decoder.add(prompt, reading.rows)
                results += [
                    Result(reading.variant, q, answer, *measured)
                    for q, answer in zip(indices, answers, strict=True)
                ]
        if request.query_aware:  # read question by question: bring variants to the outside
            n_variants = len(variants)
            results = [results[q * n_variants + v] for v in range(n_variants) for q in range(asked)]
        if not self.fidelity or full is None:
            return ContextResults(results, keep_caches=request.keep_caches)
        references = [
            prompt.reference_ids(one.text, one.answer_prefix, one.reference)[: one.max_new_tokens]
            for one in request.questions
        ]
        return ContextResults(
            results[: wanted * asked],
            results[full * asked : (full + 1) * asked],
            references,
            request.keep_caches,
        )

    def _read(self, prompt: Prompt, request: Request, at: int | None) -> list[_Reading]:
        """Read the context of a request, with question `at` in query-aware mode; one reading per variant."""
        asked = list(request.questions) if at is None else [request.questions[at]]
        seen = "" if at is None else asked[0].text
        context = request.context + seen
        ids = prompt.context_ids(context)
        rows_ids = [prompt.question_ids(one.text if at is None else "", one.answer_prefix) for one in asked]
        n_question = len(prompt.question_tokens(context, len(seen)))
        limit = request.max_context_tokens
        truncated = limit is not None and len(ids) > limit
        if truncated and limit is not None:
            ids = ids[: max(1, limit - n_question)] + (ids[-n_question:] if n_question else [])
        self._check_window(len(ids), rows_ids, asked)
        watched = [
            prompt.evidence_tokens(request.context, one.evidence) if one.evidence else [] for one in asked
        ]
        watched = [
            [position for position in positions if position < len(ids) - n_question] for positions in watched
        ]
        context_ids = torch.tensor([ids], device=self.model.get_input_embeddings().weight.device)  # type: ignore[operator]
        framing = prompt.framing(min(len(ids), n_question))
        started = now()
        measured: list[tuple[Variant, CompressedContext | Exception, float, float]]
        variants = _variants(request.press)
        offload = self._offloads(request)
        if self.prefill == "chunked":
            measured = [
                (one, *self._read_alone(context_ids, one, framing, watched, request.count_kept, offload))
                for one in variants
            ]
        elif not isinstance(request.press, Sequence):
            cache = self._forward(context_ids, variants[0].press, framing)
            seconds = now() - started
            kept = compressed_cache(self.model, cache, len(ids))
            kept.check_budget(variants[0].press, variants[0].limit(kept.tokens))
            measured = [(variants[0], kept.offloaded() if offload else kept, 0.0, seconds)]
        else:
            onlooker = Onlooker([variant.press for variant in variants])
            self._forward(context_ids, onlooker, framing)
            seconds = now() - started
            found = self._compress(
                PrefilledContext(onlooker, seconds, offload), variants, watched, request.count_kept
            )
            measured = [(*one, seconds) for one in found]
        readings = []
        for variant, made, observing, seconds in measured:
            rows = []
            if not isinstance(made, Exception):
                follower = partial(variant.press.while_decoding, variant.limit(made.tokens))
                rows = [
                    Row(made, question_ids, one, follower)
                    for question_ids, one in zip(rows_ids, asked, strict=True)
                ]
            readings.append(_Reading(variant, made, rows, truncated, seconds, observing))
        return readings

    def _read_alone(
        self,
        context_ids: Tensor,
        variant: Variant,
        framing: Framing,
        watched: Sequence[Sequence[int]],
        count_kept: bool,
        offload: bool,
    ) -> tuple[CompressedContext | Exception, float, float]:
        """What one variant keeps of a context compressed chunk by chunk, or raised; seconds observing, and of the reading with it."""
        assert self.prefill_chunk is not None
        started, size = now(), self.prefill_chunk
        try:
            kept, observing = read_in_chunks(
                self.model, context_ids, variant, size, self._forward, framing, watched, count_kept
            )
            kept.check_budget(variant.press, variant.limit(kept.tokens))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed reading
            return error, 0.0, now() - started
        return kept.offloaded() if offload else kept, observing, now() - started - kept.seconds

    def _forward(self, context_ids: Tensor, press: BasePress, framing: Framing) -> DynamicCache:
        """One prefill of (1, T) ids under a press; the cache it leaves."""
        config: Any = self.model.config
        cache = DynamicCache(config=config.get_text_config())
        with torch.no_grad(), press(self.model, framing), chunking(self.model, self.prefill_chunk):
            self.model.model(input_ids=context_ids, **{cache_keyword(self.model.model): cache})  # type: ignore[operator, arg-type]
        return cache

    def _compress(
        self,
        prefilled: PrefilledContext,
        variants: Sequence[Variant],
        watched: Sequence[Sequence[int]],
        count_kept: bool,
    ) -> list[tuple[Variant, CompressedContext | Exception, float]]:
        """What each variant keeps, or raised, in the order given; the variants of a press are compressed together."""
        in_place = read_in_place(variants, prefilled.tokens)
        found: dict[int, CompressedContext | Exception] = {}
        for identity, press in prefilled.onlooker.presses.items():
            mine = [at for at, variant in enumerate(variants) if variant.press.identity() == identity]
            asked = [(variants[at].limit(prefilled.tokens), variants[at].cache_bits) for at in mine]
            compress = partial(
                prefilled.compress, press, watched=watched, count_kept=count_kept, in_place=in_place
            )
            compressed = _compressed(compress, press, list(dict.fromkeys(asked)))
            found.update({at: compressed[one] for at, one in zip(mine, asked, strict=True)})
        seconds = prefilled.onlooker.seconds
        return [
            (variant, found[at], seconds[variant.press.identity()]) for at, variant in enumerate(variants)
        ]

    def _check_window(
        self, context: int, questions: Sequence[Sequence[int]], asked: Sequence[Question]
    ) -> None:
        needed = max(
            context + len(ids) + question.max_new_tokens
            for ids, question in zip(questions, asked, strict=True)
        )
        if self.window is not None and needed > self.window:
            raise ValueError(
                f"context, question and answer need {needed} tokens ({context} of them context), but the model's window is {self.window}; "
                "give max_context_tokens to cut the context, or shorter contexts"
            )

    def _prompt(self, chat_template: bool) -> Prompt:
        if chat_template not in self._prompts:
            self._prompts[chat_template] = Prompt(self.tokenizer, chat_template)
        return self._prompts[chat_template]

    @staticmethod
    def _question(question: str | Question | None, answer_prefix: str, max_new_tokens: int) -> Question:
        if isinstance(question, Question):
            return question
        return Question(str(question), answer_prefix, max_new_tokens)


def _variants(press: BasePress | Sequence[Variant | tuple[BasePress, float]] | None) -> list[Variant]:
    """The variants of a request: those given, or a press at its own ratio."""
    if not isinstance(press, Sequence):
        press = press or NonePress()
        return [Variant(press, press.compression_ratio)]
    variants = [one if isinstance(one, Variant) else Variant(*one) for one in press]
    if not variants:
        raise ValueError("press=[] names no variant; give at least one (press, compression_ratio)")
    return variants


def _compressed(
    compress: Callable[..., list[CompressedContext]],
    press: BasePress,
    asked: list[tuple[float | Threshold, int | None]],
) -> dict[tuple[float | Threshold, int | None], CompressedContext | Exception]:
    """What a press keeps at each ratio and size of a number, or raised; where it raises for several together, each is tried alone."""
    try:
        kept = compress([ratio for ratio, _ in asked], bits=[bits for _, bits in asked])
        for (ratio, _), one in zip(asked, kept, strict=True):
            one.check_budget(press, ratio)
        return dict(zip(asked, kept, strict=True))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        if len(asked) == 1:
            return {asked[0]: error}
    return {key: result for one in asked for key, result in _compressed(compress, press, [one]).items()}
