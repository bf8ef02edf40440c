"""Thoughts that a model writes in front of its answer: how they are switched, where they end, what is answer.

A thought belongs to the record and not to the answer: scorers, stop strings and the suite's answer prefix see
what follows it. Where it ends is known by the marks of the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from longpress.models.chat_template import FIRST_SWITCHES, MESSAGE, render, source
from longpress.pipeline.options import EFFORTS

SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""Names under which templates take whether the model thinks."""

EFFORT = "reasoning_effort"
"""The name under which templates take how long the model thinks."""

TAIL = 32
"""Tokens of the end of a text in which a mark is looked for: more than any mark has."""


class ThinkingFormat(NamedTuple):
    """The marks around a thought.

    Attributes:
        start: in front of it.
        end: behind it.
        close: what is written to end a thought at its limit, `end` included.
    """

    start: str
    end: str
    close: str


FORMATS = (
    ThinkingFormat(
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    *(
        ThinkingFormat(start, end, f"\n{end}\n\n")
        for start, end in (
            ("<think>", "</think>"),
            ("<seed:think>", "</seed:think>"),
            ("[THINK]", "[/THINK]"),
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|inner_prefix|>", "<|inner_suffix|>"),
            ("<|channel>thought", "<channel|>"),
            ("<thinking>", "</thinking>"),
            ("<thought>", "</thought>"),
            ("Here is my thought process:", "Here is my response:"),
        )
    ),
)
"""The marks that are known; the first is harmony's, whose answer is the final channel."""


def format_of(tokenizer: Any) -> ThinkingFormat | None:
    """The marks that a tokenizer's chat template names; None of a template that names none."""
    text = source(tokenizer)
    return next((one for one in FORMATS if one.end in text), None)


def switches_of(tokenizer: Any, thinking: str) -> Mapping[str, Any]:
    """What a chat template is given so that the model thinks, or does not.

    Which switches work is measured: the template renders differently with them.

    Args:
        tokenizer: with a chat template.
        thinking: "auto", "on", "off", or an effort: "low", "medium" or "high".

    Raises:
        ValueError: the template cannot do what is asked.
    """
    if thinking == "auto":
        return FIRST_SWITCHES
    booleans = [name for name in SWITCHES if _works(tokenizer, name, (True, False))]
    takes_effort = _works(tokenizer, EFFORT, EFFORTS)
    if thinking in EFFORTS:
        if not takes_effort:
            raise ValueError(
                f"thinking={thinking}: the chat template has no {EFFORT}; use thinking=on, off or auto"
            )
        return {**dict.fromkeys(booleans, True), EFFORT: thinking}
    if thinking == "on" and format_of(tokenizer) is None:
        raise ValueError(
            "thinking=on: the chat template has no switch for thinking whose thoughts have marks that are "
            f"known ({', '.join(one.end for one in FORMATS)}); use thinking=auto"
        )
    if thinking == "off" and takes_effort and not booleans:
        raise ValueError(
            f"thinking=off: the chat template has a {EFFORT} and no switch, so the model always thinks; "
            "use thinking=low, or auto"
        )
    return {**FIRST_SWITCHES, **dict.fromkeys(booleans, thinking == "on")}


def _works(tokenizer: Any, name: str, values: Sequence[Any]) -> bool:
    """Whether a template renders differently with different values of a switch."""
    if name not in source(tokenizer):
        return False
    for in_parts in (False, True):
        try:
            rendered = {
                render(tokenizer, [("user", MESSAGE)], in_parts=in_parts, switches={name: value})
                for value in values
            }
        except Exception:  # what a template cannot render is said where it is used
            continue
        if len(rendered) > 1:
            return True
    return False


@dataclass(frozen=True)
class Thinking:
    """How the answers behind a prompt may begin with a thought.

    Attributes:
        marks: around it.
        is_open: whether the prompt itself begins the thought; else the model does, or writes none.
        limit: tokens after which it is closed; None where thought and answer share one limit.
        close_ids: what is read to close it.
        inner_ids: tokens that end a message within a thought, and no answer.
    """

    marks: ThinkingFormat
    is_open: bool
    limit: int | None
    close_ids: Sequence[int]
    inner_ids: frozenset[int]

    @property
    def most_tokens(self) -> int:
        """Most tokens beside the answer's own limit: the thought's limit, and what closes it there."""
        return 0 if self.limit is None else self.limit + len(self.close_ids)

    @classmethod
    def of(
        cls, tokenizer: Any, thinking: str, behind: str, limit: int | None, encode: Any
    ) -> Thinking | None:
        """What a prompt leads to; None where it leads to an answer without a thought.

        Under "auto" and "off" a template with a switch leads to none, unless the prompt begins one.

        Args:
            tokenizer: with a chat template.
            thinking: as in `switches_of`.
            behind: what the template puts behind a message.
            limit: tokens of the thought.
            encode: gives the ids of a text that follows another.

        Raises:
            ValueError: a thought that is to be off is begun by the template, or there is a limit for none.
        """
        marks = format_of(tokenizer)
        is_open = marks is not None and behind.rfind(marks.start) > behind.rfind(marks.end)
        if marks is not None and is_open and thinking == "off":
            raise ValueError(
                f"thinking=off: the chat template always begins a thought ({marks.start}); use thinking=on "
                "or auto"
            )
        is_off = thinking in ("auto", "off") and any(
            _works(tokenizer, name, (True, False)) for name in SWITCHES
        )
        if marks is None or (is_off and not is_open):
            if limit is not None:
                raise ValueError(
                    f"max_thinking_tokens={limit}: with thinking={thinking} this chat template leads to no "
                    "thought; set thinking=on, or leave the limit out"
                )
            return None
        inner = marks.close[: -len(marks.end)].split("<|start|>")[0].strip()
        inner_ids = encode(inner) if inner else []
        return cls(marks, is_open, limit, encode(marks.close), frozenset(inner_ids[:1]))


class Thought:
    """What is known of the thought of one answer, token by token.

    Attributes:
        ended: "" where there was none, or it is being written; "closed" by the model, "limit" where it was
            closed at its limit, "open" where the answer ended within it.
        tokens: of the thought with its marks.
        forced: tokens that are read next, whatever the model would write.
        n_forced: how many were.
        answer_start: number of tokens in front of the answer.
        first: text of the answer that shares a token with the end mark.
    """

    def __init__(self, thinking: Thinking | None, tokenizer: Any, prefix: Sequence[int]) -> None:
        """Nothing is written yet.

        Args:
            thinking: None where there is no thought.
            tokenizer: of transformers.
            prefix: ids of the answer prefix, which is read once the thought has ended.
        """
        self.thinking, self.tokenizer, self.prefix = thinking, tokenizer, prefix
        self.ended, self.tokens, self.answer_start, self.first = "", 0, 0, ""
        self.forced: list[int] = []
        self.n_forced = 0
        self.is_begun = thinking is not None and thinking.is_open
        self.is_over = thinking is None

    def passes(self, token: int) -> bool:
        """Whether an end token ends a message within the thought, and not the answer."""
        return self.thinking is not None and not self.is_over and token in self.thinking.inner_ids

    def take(self, ids: Sequence[int]) -> None:
        """Look at the tokens that are written so far, the last of which is new."""
        if self.is_over or self.thinking is None:
            return
        marks = self.thinking.marks
        if not self.is_begun:
            text = self._text(ids).lstrip()
            self.is_begun = text.startswith((marks.start, marks.end))
            if not self.is_begun:
                # neither mark can follow any more: there is no thought
                self.is_over = not (marks.start.startswith(text) or marks.end.startswith(text))
                return
        tail = self._text(ids[-TAIL:])
        if marks.end in tail:
            self.first = tail.rpartition(marks.end)[2]
            self._end("closed", ids, self.prefix)
        elif self.thinking.limit is not None and len(ids) >= self.thinking.limit:
            self._end("limit", ids, [*self.thinking.close_ids, *self.prefix])

    def written(self, ids: Sequence[int]) -> int:
        """How many of the tokens count for the limit of the answer."""
        if self.thinking is None:
            return len(ids)
        if self.thinking.limit is None:
            return len(ids) - (self.n_forced - len(self.forced))
        return max(0, len(ids) - self.answer_start) if self.is_over else 0

    def finish(self, ids: Sequence[int]) -> None:
        """The answer has ended, perhaps within the thought."""
        if self.is_begun and not self.is_over:
            self.ended, self.tokens, self.is_over, self.answer_start = "open", len(ids), True, len(ids)

    def text(self, ids: Sequence[int]) -> str:
        """The thought without its marks; empty where there was none."""
        if self.thinking is None or not self.ended:
            return ""
        raw = self._text(ids[: self.tokens]).strip().removeprefix(self.thinking.marks.start)
        return raw.rpartition(self.thinking.marks.end)[0].strip() if self.ended == "closed" else raw.strip()

    def _end(self, how: str, ids: Sequence[int], forced: Sequence[int]) -> None:
        self.ended, self.tokens, self.is_over = how, len(ids), True
        self.forced, self.n_forced = list(forced), len(forced)
        self.answer_start = len(ids) + len(forced)

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
