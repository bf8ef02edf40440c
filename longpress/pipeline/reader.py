"""Reading the context of a request: one prefill for all its variants, or each variant by itself."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kvcache.budget import Budget
from kvcache.compress import Target
from kvcache.hooks.prefill import PromptTokens
from kvcache.linear import device_of
from kvcache.rope_frequencies import rope_length
from longpress.pipeline.clock import now
from longpress.pipeline.compress_while_reading import read_and_compress
from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.memory import read_in_place
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt, Question, overlapping
from longpress.pipeline.results import Request
from longpress.pipeline.rows import Row
from longpress.pipeline.sweep_observer import PrefilledContext, SweepObserver
from longpress.pipeline.variants import Variant
from presses.base import BasePress
from presses.none import NonePress

Forward = Callable[[Tensor, BasePress | SweepObserver, PromptTokens, int], DynamicCache]
"""The prefill of (1, T) ids under a press, or observed for a sweep; gives the cache that it leaves.

The number is the RoPE length of the prompt: see `kvcache.rope_frequencies`.
"""


@dataclass(frozen=True)
class Reading:
    """What one variant keeps of a context that was read, or what was raised, and the rows to be decoded.

    Attributes:
        variant: press and budget.
        kept: what it keeps, or why it keeps nothing.
        questions: of the request, that are asked of it.
        rows: one per question.
        truncated: whether the context was cut to `max_context_tokens`.
        joint: tokens at the context's end that are read with the questions, see `PromptIds`.
        seconds: of the forward pass over the context, observing included.
        observe_seconds: share of it that this press spent observing.
    """

    variant: Variant
    kept: CompressedContext | Exception
    questions: Sequence[int]
    rows: Sequence[Row] = ()
    truncated: bool = False
    joint: int = 0
    seconds: float = 0.0
    observe_seconds: float = 0.0


class _Kept(NamedTuple):
    """What a variant keeps, or raised; seconds spent observing, and in the prefill as a whole."""

    context: CompressedContext | Exception
    observe_seconds: float
    seconds: float


class _Prompted(NamedTuple):
    """A context as the model reads it, and what is asked behind it.

    Attributes:
        ids: of the context, and of the question where it is seen while compressing.
        n_question: how many of them are the question.
        question_ids: by question of the request, the ids read behind the context.
        watched: per question of the request, positions of the context whose survival is measured; empty where
            no survival is, since no question has evidence or it cannot be told where tokens stand.
        truncated: whether the context was cut.
        joint: tokens at the context's end that are read with the questions, see `PromptIds`.
    """

    ids: list[int]
    n_question: int
    question_ids: dict[int, list[int]]
    watched: list[list[int]]
    truncated: bool
    joint: int


class Reader:
    """Reads contexts with one model."""

    def __init__(
        self, model: nn.Module, max_length: int | None, options: PipelineOptions, forward: Forward
    ) -> None:
        """Read with `model`, by `forward`; more than `max_length` tokens with the answer are refused."""
        self.model, self.max_length, self.options, self.forward = model, max_length, options, forward

    def read(self, prompt: Prompt, request: Request, at: int | None, offload: bool) -> list[list[Reading]]:
        """Read the context of a request; one reading per variant.

        Questions whose prompts have other rotary frequencies ask another reading of the context, which has
        these: see `kvcache.rope_frequencies`.

        Args:
            prompt: the text around the context.
            request: what is asked.
            at: in query-aware mode, the question that is read with the context; else None.
            offload: whether what is kept is to lie in host memory.

        Returns:
            Per reading of the context, one of each variant.

        Raises:
            ValueError: an empty context, or a prompt that is too long for the model.
        """
        asked = list(range(len(request.questions))) if at is None else [at]
        prompted = self._prompted(prompt, request, asked, query_aware=at is not None)
        self._check_length(prompt, prompted, request.questions)

        # The questions by the RoPE length of their prompts.
        by_length: dict[int, list[int]] = {}
        for question, ids in prompted.question_ids.items():
            length = rope_length(self.model, len(prompted.ids) + len(ids))
            by_length.setdefault(length, []).append(question)
        return [
            self._read(prompt, request, prompted, questions, length, offload)
            for length, questions in by_length.items()
        ]

    def _read(
        self,
        prompt: Prompt,
        request: Request,
        prompted: _Prompted,
        questions: Sequence[int],
        length: int,
        offload: bool,
    ) -> list[Reading]:
        """Read the context once, with the rotary frequencies of prompts of RoPE length `length`."""
        device = device_of(self.model.get_input_embeddings())  # type: ignore[operator]
        context_ids = torch.tensor([prompted.ids], device=device)
        prompt_tokens = prompt.prompt_tokens(min(len(prompted.ids), prompted.n_question))

        variants = variants_of(request.press)
        if self.options.compress_every is not None:
            read = partial(
                self._alone, context_ids, prompt_tokens, prompted.watched, request.count_kept, length
            )
            kept = [read(variant) for variant in variants]
        elif isinstance(request.press, Sequence):
            kept = self._together(
                context_ids, prompt_tokens, variants, prompted.watched, request.count_kept, length, offload
            )
        else:
            whole, taken = self.by_itself(context_ids, prompt_tokens, variants[0], length)
            kept = [_Kept(whole, 0.0, taken)]

        readings = []
        for variant, (context, observing, seconds) in zip(variants, kept, strict=True):
            rows: list[Row] = []
            if not isinstance(context, Exception):
                context = replace(context, rope_length=length)
                context = context.offloaded() if offload else context
                rows = [
                    Row(
                        context,
                        prompted.question_ids[question],
                        request.questions[question],
                        variant.for_context(context.tokens),
                    )
                    for question in questions
                ]
            readings.append(
                Reading(
                    variant,
                    context,
                    questions,
                    rows,
                    prompted.truncated,
                    prompted.joint,
                    seconds,
                    observing,
                )
            )
        return readings

    def _prompted(
        self, prompt: Prompt, request: Request, asked: Sequence[int], query_aware: bool
    ) -> _Prompted:
        questions = [request.questions[at] for at in asked]
        seen = questions[0].text if query_aware else ""
        context = request.context + seen
        read = prompt.ids(
            context,
            [("" if query_aware else question.text, question.answer_prefix) for question in questions],
        )
        ids, joint = read.context, read.joint
        n_question = sum(position < len(ids) for position in prompt.question_tokens(context, len(seen)))

        # A context that is cut keeps its beginning, and the question behind it.
        limit = request.max_context_tokens
        truncated = limit is not None and len(ids) > limit
        if truncated and limit is not None:
            end = ids[-n_question:] if n_question else []
            ids = ids[: max(1, limit - n_question)] + end

        # Where the evidence of each question stands: the context is looked at once for all of them.
        has_evidence = any(question.evidence for question in request.questions)
        of_tokens = prompt.token_spans(request.context) if has_evidence else []
        watched: list[list[int]] = []
        if of_tokens is not None:
            read_whole = of_tokens[: len(ids) - n_question]
            watched = [overlapping(read_whole, question.evidence) for question in request.questions]

        behind = dict(zip(asked, read.questions, strict=True))
        return _Prompted(ids, n_question, behind, watched, truncated, joint)

    def _check_length(self, prompt: Prompt, prompted: _Prompted, questions: Sequence[Question]) -> None:
        context = len(prompted.ids)
        needed = max(
            context + len(ids) + prompt.most_tokens(questions[at])
            for at, ids in prompted.question_ids.items()
        )
        if self.max_length is not None and needed > self.max_length:
            raise ValueError(
                f"context, question and answer need {needed} tokens ({context} of them context), but the "
                f"model's window is {self.max_length}; shorten the context (in Python, max_context_tokens=… "
                "cuts it), or take a model with a longer window"
            )

    # -- one prefill, many variants --

    def _together(
        self,
        context_ids: Tensor,
        prompt_tokens: PromptTokens,
        variants: Sequence[Variant],
        watched: Sequence[Sequence[int]],
        count_kept: bool,
        length: int,
        offload: bool,
    ) -> list[_Kept]:
        """What each variant keeps of a context that is read once."""
        started = now()
        observer = SweepObserver([variant.press for variant in variants])
        self.forward(context_ids, observer, prompt_tokens, length)
        seconds = now() - started
        prefilled = PrefilledContext(observer, seconds, offload)
        in_place = read_in_place(variants, prefilled.tokens)

        # The variants of a press are compressed together.
        kept: dict[int, CompressedContext | Exception] = {}
        for identity, press in observer.presses.items():
            mine = [at for at, variant in enumerate(variants) if variant.press.identity() == identity]
            compress = partial(
                prefilled.compress, press, watched=watched, count_kept=count_kept, in_place=in_place
            )
            targets = [variants[at].target for at in mine]
            contexts = _compressed(compress, press, list(dict.fromkeys(targets)))
            kept |= {at: contexts[target] for at, target in zip(mine, targets, strict=True)}
        return [
            _Kept(kept[at], observer.seconds[variant.press.identity()], seconds)
            for at, variant in enumerate(variants)
        ]

    # -- one variant, by itself --

    def by_itself(
        self, context_ids: Tensor, prompt_tokens: PromptTokens, variant: Variant, length: int
    ) -> tuple[CompressedContext, float]:
        """What a press keeps of (1, T) ids at its own budget, by `with press(model)`; seconds of the prefill.

        `length` is the RoPE length of the prompt.

        Raises:
            ValueError: the budget was not met.
        """
        started = now()
        cache = self.forward(context_ids, variant.press, prompt_tokens, length)
        seconds = now() - started
        kept = CompressedContext.of_cache(self.model, cache, context_ids.shape[1])
        kept.check_budget(variant.press, variant.budget)
        return replace(kept, rope_length=length), seconds

    def _alone(
        self,
        context_ids: Tensor,
        prompt_tokens: PromptTokens,
        watched: Sequence[Sequence[int]],
        count_kept: bool,
        length: int,
        variant: Variant,
    ) -> _Kept:
        """What a variant keeps of a context that it compresses while it reads it."""
        size = self.options.compress_every
        assert size is not None

        started = now()
        try:
            context, observing = read_and_compress(
                self.model,
                context_ids,
                variant,
                size,
                self.forward,
                prompt_tokens,
                watched,
                count_kept,
                length,
            )
            context.check_budget(variant.press, variant.budget)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed reading
            return _Kept(error, 0.0, now() - started)
        return _Kept(context, observing, now() - started - context.seconds)


def variants_of(press: BasePress | Sequence[Variant | tuple[BasePress, float]] | None) -> list[Variant]:
    """The variants of a request: those given, or a press at its own budget.

    Raises:
        ValueError: the list is empty, or what is given is no press.
    """
    if isinstance(press, str):
        raise ValueError(f"press={press!r} is a name; give a press such as SnapKVPress(0.5)")
    if not isinstance(press, Sequence | BasePress | None):
        raise ValueError(f"press={press!r} is no press; give one such as SnapKVPress(0.5)")
    if not isinstance(press, Sequence):
        press = press or NonePress()
        return [Variant(press, press.budget)]
    variants = [
        given if isinstance(given, Variant) else Variant(given[0], Budget.of(given[1])) for given in press
    ]
    if not variants:
        raise ValueError("press=[] names no variant; give at least one (press, compression_ratio)")
    return variants


def _compressed(
    compress: Callable[[list[Target]], list[CompressedContext]], press: BasePress, targets: list[Target]
) -> dict[Target, CompressedContext | Exception]:
    """What a press keeps for each target, or raised; where it raises for several, each is tried alone."""
    try:
        contexts = compress(targets)
        for target, context in zip(targets, contexts, strict=True):
            context.check_budget(press, target.budget)
        return dict(zip(targets, contexts, strict=True))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        if len(targets) == 1:
            return {targets[0]: error}
    tried: dict[Target, CompressedContext | Exception] = {}
    for target in targets:
        tried |= _compressed(compress, press, [target])
    return tried
