"""Text in, text out, through compressed caches."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kvcache.architecture import check_model
from kvcache.hooks.prefill import PromptTokens, chunking
from kvcache.linear import device_of
from kvcache.modules import cache_keyword, decoder_of
from kvcache.rope_frequencies import rope_length
from longpress.models.loading import eos_token_ids
from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.decode import Decoder
from longpress.pipeline.memory import MemoryPlan, Shape, memory_plan, room
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt, Question
from longpress.pipeline.reader import Reader
from longpress.pipeline.results import Answers, Failure, Request, Result
from longpress.pipeline.scheduler import Scheduler, with_full_cache
from longpress.pipeline.sweep_observer import SweepObserver
from longpress.pipeline.token_prompts import TokenPrompts
from longpress.pipeline.variants import Variant
from presses.base import BasePress


class CompressingPipeline:
    """A model and its tokenizer, answering questions about contexts that presses compress.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        options: how contexts are read and answers decoded.
        eos_ids: tokens that end an answer.
        max_length: tokens that the model may read and write, None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        options: PipelineOptions | None = None,
    ) -> None:
        """A pipeline over a loaded model.

        Args:
            model: of transformers; put into evaluation mode.
            tokenizer: of transformers.
            max_length: tokens of prompt and answer together, by default the model's own context window. A
                prompt that fits with its longest answer is read whole; a longer one is refused (in a sweep, a
                failed cell), and cut only by the benchmark's own rule or `max_context_tokens`.
            options: see `PipelineOptions`.

        Raises:
            ValueError: a model that would be compressed wrongly, or an end token that does not exist.
        """
        check_model(model)
        config: Any = model.config
        self.model, self.tokenizer, self.options = model.eval(), tokenizer, options or PipelineOptions()
        self.max_length = max_length or getattr(config.get_text_config(), "max_position_embeddings", None)
        self.room = room(model, self.options.offload)
        self.eos_ids = eos_token_ids(model, tokenizer, self.options.ends())
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
        if not isinstance(context, str):
            raise ValueError(f"give one context as a text, no {type(context).__name__}; call once for each")
        if (question is None) == (questions is None):
            raise ValueError("give either question= or questions=")
        given = [question] if questions is None else questions
        asked = [_question(one, answer_prefix, max_new_tokens) for one in given]
        request = Request(
            context,
            asked,
            press,
            query_aware=query_aware,
            chat_template=chat_template,
            max_context_tokens=max_context_tokens,
            keep_caches=True,
        )
        results: list[Result] = []
        for result in next(self.stream([request])):
            if result.error is not None:
                raise result.error
            assert isinstance(result, Result)
            results.append(result)
        return self._answers(
            results, len(asked), one_question=questions is None, many=isinstance(press, Sequence)
        )

    @staticmethod
    def _answers(results: list[Result], n_questions: int, one_question: bool, many: bool) -> Answers:
        """The answers in the form of what was asked: of one question or several, of one variant or many."""
        texts = [result.answer.text for result in results]
        by_variant = [texts[at : at + n_questions] for at in range(0, len(texts), n_questions)]
        given = [row[0] for row in by_variant] if one_question else by_variant
        answers = Answers({"answer" if one_question else "answers": given if many else given[0]})
        answers.results = results
        return answers

    def sweep(
        self,
        context: str,
        questions: Sequence[str | Question],
        variants: Sequence[Variant | tuple[BasePress, float]],
        **options: Any,
    ) -> list[list[str]]:
        """All answers of all variants from one prefill: `answers[variant][question]`.

        Options as for calling the pipeline.
        """
        answers: list[list[str]] = self(context, questions=questions, press=list(variants), **options)[
            "answers"
        ]
        return answers

    def token_spans(self, context: str, chat_template: bool = True) -> list[tuple[int, int]] | None:
        """Characters [start, end) of `context` that each position of its cache stands for.

        Negative within the chat template. None where it cannot be told.
        """
        return self._prompt(chat_template).token_spans(context)

    def token_prompts(self, press: BasePress, last_tokens: int = 1) -> TokenPrompts:
        """For prompts in token ids, such as other harnesses make: all but their last tokens are compressed.

        Args:
            press: with its ratio.
            last_tokens: of a prompt, so many are read behind what is compressed, as a question is.
        """
        reader, prompt = self._reader(), self._prompt(chat_template=False)
        device = device_of(self.model.get_input_embeddings())  # type: ignore[operator]

        def read(ids: Sequence[int], tokens: int, variant: Variant) -> CompressedContext:
            context_ids, length = torch.tensor([list(ids)], device=device), rope_length(self.model, tokens)
            return reader.by_itself(context_ids, prompt.prompt_tokens(), variant, length)[0]

        return TokenPrompts(self._decoder(), prompt, read, Variant(press, press.budget), last_tokens)

    def stream(self, requests: Iterable[Request]) -> Generator[list[Result | Failure], None, None]:
        """Results of every request, in order, variant by variant and question by question.

        Contexts are read one after the other, and the rows of several are decoded together: as many as
        `max_context_gb` holds, up to `memory.WIDE` rows. Once few rows of the contexts held are still being
        written, the next one is read and its rows join them, so that batches stay full; what is written does
        not depend on it. Before a context is read, its bytes are planned, and what is held is written to its
        end as far as both would exceed the bound.

        What raises fails alone: a press spoils its own variants, a context its own questions, and the rest
        goes on. After a KeyboardInterrupt the contexts at work are given as they are, unfinished answers
        without a stop reason (all of them where fidelity is measured, which needs the whole context), before
        it goes on.

        Raises:
            ValueError: no question or no variant.
        """
        scheduler = Scheduler(
            self._reader(), self._decoder(), self.options, self.plan, self._prompt, self.room
        )
        return scheduler.stream(requests)

    def plan(self, request: Request, contexts: int = 1) -> MemoryPlan:
        """The memory that the answers to a request take, or to so many requests like it.

        A model that is not loaded is taken not to offload.         Whether a context is offloaded is decided
        for it alone: contexts are held together only as far as they fit.
        """
        prompt, questions = self._prompt(request.chat_template), request.questions
        ids = prompt.ids(request.context, [(one.text, one.answer_prefix) for one in questions])
        tokens, tails = len(ids.context), list(map(len, ids.questions))
        if request.query_aware:
            tokens += max(tails)
        tokens = min(tokens, request.max_context_tokens or tokens)
        bound = partial(
            memory_plan,
            self.shape,
            tokens,
            with_full_cache(request, self.options.fidelity),
            max(tail + prompt.most_tokens(one) for tail, one in zip(tails, questions, strict=True)),
            self.options,
            questions=len(questions),
            readings=len({rope_length(self.model, tokens + tail) for tail in tails}),
            query_aware=request.query_aware,
        )
        return bound(contexts=contexts, offload=bound().total > self.room)

    def _forward(
        self,
        context_ids: Tensor,
        press: BasePress | SweepObserver,
        prompt_tokens: PromptTokens,
        rope_length: int,
    ) -> DynamicCache:
        """One prefill of (1, T) ids inside `press(model)`, or observed for a sweep; the cache it leaves.

        `rope_length` is that of the prompt: see `kvcache.rope_frequencies`.
        """
        config: Any = self.model.config
        decoder = decoder_of(self.model)
        cache: Any = DynamicCache(config=config.get_text_config())
        cache.rope_lengths = [rope_length]
        with (
            torch.no_grad(),
            press(self.model, prompt_tokens),
            chunking(self.model, self.options.prefill_chunk),
        ):
            decoder(input_ids=context_ids, **{cache_keyword(decoder): cache})
        return cache

    def _reader(self) -> Reader:
        return Reader(self.model, self.max_length, self.options, self._forward)

    def _decoder(self) -> Decoder:
        max_bytes = int(self.options.max_batch_gb * 2**30)
        return Decoder(
            self.model,
            self.eos_ids,
            max_bytes,
            keep_questions=self.options.fidelity,
            sampling=self.options,
        )

    def _prompt(self, chat_template: bool) -> Prompt:
        if chat_template not in self._prompts:
            self._prompts[chat_template] = Prompt.under(self.options, self.tokenizer, chat_template)
        return self._prompts[chat_template]


def _question(question: str | Question | None, answer_prefix: str, max_new_tokens: int) -> Question:
    if isinstance(question, Question):
        return question
    return Question(str(question), answer_prefix, max_new_tokens)
