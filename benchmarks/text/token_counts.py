"""How many tokens texts take, and how many a model's context window leaves for them.

What stands around a prompt is measured: the chat template, or the special tokens of a bare prompt. A run
gives benchmarks a tokenizer that counts whole prompts as its pipeline reads them (`prompt_tokens`). With any
other tokenizer, the parts are counted one by one, and what its template or its special tokens add to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.base import PromptParts, Tokenizer

_SLACK = 16
"""Tokens by which a whole prompt may differ from the sum of its parts: those at their joints."""


def count_tokens(tokenizer: Tokenizer, *parts: str) -> int:
    """Tokens of texts that are tokenised apart, without special tokens."""
    return sum(len(tokenizer.encode(part, add_special_tokens=False)) for part in parts if part)


def surely_fit(limit: int, *parts: str) -> bool:
    """Whether texts have at most `limit` tokens whatever the tokenizer: a token holds at least one byte."""
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts) <= limit


def special_tokens(tokenizer: Tokenizer) -> int:
    """Number of special tokens that a tokenizer puts around a bare prompt."""
    return len(tokenizer.encode("x", add_special_tokens=True)) - count_tokens(tokenizer, "x")


def prompt_tokens(tokenizer: Tokenizer, parts: PromptParts, chat_template: bool) -> int:
    """Tokens that a model reads of a prompt, with what stands around it.

    Args:
        tokenizer: of the model under test.
        parts: of the prompt.
        chat_template: whether the prompt is a user message; else it is bare.
    """
    of_run: Any = getattr(tokenizer, "prompt_tokens", None)
    if of_run is not None:
        return int(of_run(*parts, chat_template))
    context, question, answer_prefix = parts
    text = count_tokens(tokenizer, context, question + answer_prefix)
    anything: Any = tokenizer
    if chat_template and getattr(tokenizer, "chat_template", None):
        rendered = anything.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
        )
        return text + count_tokens(tokenizer, rendered) - count_tokens(tokenizer, "x")
    return text + special_tokens(tokenizer)


@dataclass(frozen=True)
class Window:
    """A model's context window, as the prompts of one task share it with their answers.

    Attributes:
        tokenizer: of the model under test.
        size: tokens of the window, or fewer where a benchmark's own length is shorter.
        max_new_tokens: of an answer.
        chat_template: whether prompts are user messages.
    """

    tokenizer: Tokenizer
    size: int
    max_new_tokens: int
    chat_template: bool

    @cached_property
    def around(self) -> int:
        """Tokens that stand around a prompt."""
        probe = PromptParts("x x", "\nx x", "")
        inside = count_tokens(self.tokenizer, probe.context, probe.question)
        return prompt_tokens(self.tokenizer, probe, self.chat_template) - inside

    @property
    def room(self) -> int:
        """Tokens that are left for the text of a prompt."""
        return self.size - self.max_new_tokens - self.around

    def excess(self, parts: PromptParts, text_tokens: int | None = None) -> int:
        """Tokens by which a prompt and its answer exceed the window; 0 where they fit.

        Args:
            parts: of the prompt.
            text_tokens: tokens of its text, where they are known: then a prompt that is clearly short enough
                is not counted again.
        """
        room = self.room - _SLACK
        if surely_fit(room, *parts) or (text_tokens is not None and text_tokens <= room):
            return 0
        whole = prompt_tokens(self.tokenizer, parts, self.chat_template)
        return max(0, whole + self.max_new_tokens - self.size)

    def check(self, parts: PromptParts, *, what: str, fix: str) -> None:
        """Refuse a prompt that does not fit, for suites without a rule to cut it.

        Args:
            parts: of the prompt.
            what: the prompt is, the subject of the error's sentence.
            fix: what the user should do instead, for the error.

        Raises:
            ValueError: prompt and answer exceed the window.
        """
        if excess := self.excess(parts):
            raise ValueError(
                f"{what} takes {self.size + excess} tokens, the model's window has {self.size}, "
                f"and the suite has no rule to cut prompts; {fix}"
            )
