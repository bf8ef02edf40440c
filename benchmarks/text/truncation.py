"""The cut of LongBench and its kin: a prompt that is too long loses its middle."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.base import PromptParts, Tokenizer
from benchmarks.text.spans import Spans, moved_spans
from benchmarks.text.token_counts import Window, count_tokens, special_tokens, surely_fit


@dataclass(frozen=True)
class CutPrompt:
    """A prompt in three parts, and whether it was cut."""

    context: str
    question: str
    answer_prefix: str
    truncated: bool
    evidence: Spans = ()
    """What is left of the evidence, where it stands after the cut."""


def cut_middle(
    parts: PromptParts,
    window: Window,
    limit: int | None,
    *,
    where: str,
    count_special: bool,
    evidence: Spans = (),
    jointly: bool = False,
    keep_context: bool = False,
    cut_question: bool = False,
) -> CutPrompt:
    """Cut a prompt to its first and its last `limit // 2` tokens, without losing the question.

    A prompt that then does not fit into the window with its answer is cut to as many tokens less.

    Where the tokenizer gives text back unchanged, the parts of the result make exactly the official prompt;
    where it does not, the question stays as it was.

    Args:
        parts: of the prompt, which is measured and cut joined.
        window: that the prompt must fit.
        limit: tokens above which the suite cuts a prompt; None for what the window leaves.
        where: the row stands, for errors.
        count_special: whether the special tokens that the tokenizer puts in front of a prompt count towards
            the limit, and stand in the first half, from whose text they are dropped (LongBench,
            InfiniteBench); else the prompt is measured and cut without them (LooGLE, SCBench).
        evidence: spans of the context, which are moved to where they stand after the cut.
        jointly: whether both halves are decoded in one go, the second then being the larger one of an odd
            limit (LongBench v2, InfiniteBench); else both have `limit // 2` tokens and are decoded apart.
        keep_context: whether something of the context's end must be kept before the question (LooGLE,
            SCBench); else the second half may be the question alone.
        cut_question: whether the cut may take the beginning of the question, which is code to be completed;
            else such a row is refused.

    Raises:
        ValueError: the limit leaves no room for the question; names the row, the numbers and the fix.
    """
    context, question, answer_prefix = parts
    tail, tokenizer = question + answer_prefix, window.tokenizer

    # What the window leaves, counted as the limit is.
    special = special_tokens(tokenizer) if count_special else 0
    room = window.room + special
    limit = room if limit is None else min(limit, room)

    # Most prompts are short: they are told by their bytes, or by one count.
    whole = CutPrompt(*parts, truncated=False, evidence=evidence)
    if surely_fit(limit - special, *parts) and not window.excess(parts):
        return whole
    tokens = tokenizer.encode(context + tail, add_special_tokens=count_special)
    if len(tokens) <= limit:
        excess = window.excess(parts, len(tokens))
        if not excess:
            return whole
        limit = len(tokens) - excess

    while True:
        prompt = _cut(parts, tokenizer, tokens, limit, where, evidence, jointly, keep_context, cut_question)
        excess = window.excess(PromptParts(prompt.context, prompt.question, prompt.answer_prefix), limit)
        if not excess:
            return prompt
        limit -= excess  # what was cut has other tokens when it is read


def _cut(
    parts: PromptParts,
    tokenizer: Tokenizer,
    tokens: list[int],
    limit: int,
    where: str,
    evidence: Spans,
    jointly: bool,
    keep_context: bool,
    cut_question: bool,
) -> CutPrompt:
    """One cut to `limit` of the prompt's `tokens`; see `cut_middle`."""
    context, question, answer_prefix = parts
    tail = question + answer_prefix

    # The two halves that are kept.
    first = max(limit, 0) // 2
    last = max(limit, 0) - first if jointly else first
    behind = count_tokens(tokenizer, tail)

    if last > (behind if keep_context else 0):
        head, end = _text(tokenizer, tokens[:first]), _text(tokenizer, tokens[-last:])
        text = _text(tokenizer, tokens[:first] + tokens[-last:]) if jointly else head + end

        def cut(context_left: str, question_left: str) -> CutPrompt:
            left = moved_spans(context, context_left, evidence) if evidence else ()
            return CutPrompt(context_left, question_left, answer_prefix, truncated=True, evidence=left)

        # As a rule the text ends with the whole question.
        if text.endswith(tail) and len(text) - len(tail) >= len(head):
            return cut(text[: len(text) - len(tail)], question)
        # The tokenizer does not give text back unchanged: the question is taken off as tokens.
        if last >= behind:
            before_question = tokens[len(tokens) - last : len(tokens) - behind]
            return cut(head + _text(tokenizer, before_question), question)
        if cut_question and end.endswith(answer_prefix):
            return cut(head, end[: len(end) - len(answer_prefix)])

    raise ValueError(
        f"{where}: the question takes {behind} tokens, and {last} are kept at the end of a prompt cut to "
        f"{limit}; take a longer max_length or a model with a longer window, or leave out this task"
    )


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True)
