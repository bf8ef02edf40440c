"""Cutting a filled prompt in its middle, the rule of LongBench and its kin, without losing the question or the place of the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.base import Tokenizer
from benchmarks.sources import count_tokens

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CutPrompt:
    """A prompt in three parts, and whether it was cut."""

    context: str
    question: str
    answer_prefix: str
    evidence: Spans
    truncated: bool


def cut_middle(
    parts: tuple[str, str, str],
    evidence: Spans,
    tokenizer: Tokenizer,
    limit: int,
    *,
    name: str,
    jointly: bool = False,
    into_question: bool = False,
) -> CutPrompt:
    """Cut the prompt that `parts` (context, question, answer prefix) make together to its first and last halves of `limit` tokens.

    The whole prompt is measured, with the special tokens that the tokenizer puts in front of it, which are
    dropped from the text. Where the tokenizer gives text back unchanged, the parts of the result make exactly
    the official prompt; where it does not, the question stays as it was.

    Args:
        parts: context, question and answer prefix.
        evidence: spans of the context; what is left of them is moved to where it stands after the cut.
        tokenizer: of the model under test.
        limit: tokens above which a prompt is cut.
        name: of the row, for errors.
        jointly: whether both halves are decoded in one go (LongBench v2, InfiniteBench), the second then
            being the larger one of an odd limit; else each half has `int(limit / 2)` tokens and is decoded
            apart (LongBench).
        into_question: whether the cut may take the beginning of the question (code to be completed); else
            such a row is refused.

    Raises:
        ValueError: the limit leaves no room for the question; names the row, the numbers and the fix.
    """
    context, question, answer_prefix = parts
    tail = question + answer_prefix
    if sum(len(part.encode("utf-8", "surrogatepass")) for part in parts) + 8 <= limit:
        return CutPrompt(*parts, evidence, False)  # a token holds at least one byte; 8 for special tokens
    tokens = tokenizer.encode(context + tail, add_special_tokens=True)
    if len(tokens) <= limit:
        return CutPrompt(*parts, evidence, False)
    first = max(limit, 0) // 2
    last = max(limit, 0) - first if jointly else first
    behind = count_tokens(tokenizer, tail)
    if last > 0:
        head, end = (
            tokenizer.decode(half, skip_special_tokens=True) for half in (tokens[:first], tokens[-last:])
        )
        text = (
            tokenizer.decode(tokens[:first] + tokens[-last:], skip_special_tokens=True)
            if jointly
            else head + end
        )
        if text.endswith(tail) and len(text) - len(tail) >= len(head):
            return _cut(context, text[: len(text) - len(tail)], question, answer_prefix, evidence)
        if last >= behind:  # the tokenizer does not give text back unchanged
            left = tokenizer.decode(
                tokens[len(tokens) - last : len(tokens) - behind], skip_special_tokens=True
            )
            return _cut(context, head + left, question, answer_prefix, evidence)
        if into_question and end.endswith(answer_prefix):
            return _cut(context, head, end[: len(end) - len(answer_prefix)], answer_prefix, evidence)
    raise ValueError(
        f"{name}: the question takes {behind} tokens, and {max(last, 0)} are kept at the end of a prompt cut to {limit}; "
        "take a model with a longer window, or leave out this task"
    )


def _cut(context: str, left: str, question: str, answer_prefix: str, evidence: Spans) -> CutPrompt:
    return CutPrompt(
        left, question, answer_prefix, moved_spans(context, left, evidence) if evidence else (), True
    )


def moved_spans(before: str, after: str, spans: Sequence[tuple[int, int]]) -> Spans:
    """What is left of spans of a text after its middle was cut out: one or two pieces of each, where they stand in the result."""
    head = _common(before, after)
    rest = min(len(before), len(after)) - head
    end = _common(before[len(before) - rest :][::-1], after[len(after) - rest :][::-1])
    shift, start_of_end = len(after) - len(before), len(before) - end
    pieces = []
    for start, stop in spans:
        pieces += [(start, min(stop, head)), (max(start, start_of_end) + shift, stop + shift)]
    return tuple(sorted((start, stop) for start, stop in pieces if start < stop))


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    return next(
        (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def room(window: int, answer: int, chat_template: bool) -> int:
    """Tokens that a window leaves for a prompt, beside its answer and a chat template."""
    return window - answer - (64 if chat_template else 8)
