"""From text to token ids: the chat template around a context, and the questions that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcache.hooks.prefill import PromptTokens


@dataclass(frozen=True)
class Question:
    """What is asked about a context, and when the answer ends.

    Attributes:
        text: read after the context.
        answer_prefix: the beginning of the answer, given to the model.
        max_new_tokens: limit of the answer, at least 1.
        min_new_tokens: tokens before which no end-of-sequence token and no stop string counts.
        stop: strings that end the answer and are not part of it.
        evidence: character spans [start, end) of the context whose survival is measured.
        reference: an answer as it should be written, whose likelihood is measured where fidelity is.
    """

    text: str
    answer_prefix: str = ""
    max_new_tokens: int = 50
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    evidence: tuple[tuple[int, int], ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        """Refuse an answer of no tokens."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


class Prompt:
    """The text around a context: chat template or none.

    Contexts and questions are tokenised apart, so that their joint is the same for all.

    Attributes:
        before: text in front of the context.
        after: text between the question and the answer prefix.
    """

    def __init__(self, tokenizer: Any, chat_template: bool = True) -> None:
        """Render the tokenizer's template around a placeholder.

        Args:
            tokenizer: of transformers.
            chat_template: False for the bare prompt, behind the beginning-of-sequence token if the tokenizer
                adds one. A tokenizer without a template always gives the bare prompt.
        """
        self.tokenizer = tokenizer
        self.before, self.after = "", ""
        if chat_template and getattr(tokenizer, "chat_template", None):
            mark = "\x1elongpress context\x1e".replace("\x1e", "~~~~~")
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": mark}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            self.before, self.after = rendered.split(mark)
        elif tokenizer.bos_token and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]:
            self.before = tokenizer.bos_token

    def context_ids(self, context: str) -> list[int]:
        """Token ids of the context with what the template puts in front.

        Raises:
            ValueError: there is nothing to read.
        """
        ids = self._encode(self.before + context)
        if not ids:
            raise ValueError("the context is empty, so there is nothing to compress; give at least one token")
        return ids

    def question_ids(self, question: str, answer_prefix: str) -> list[int]:
        """Token ids of what follows the context.

        Raises:
            ValueError: neither question nor template nor answer prefix gives a token to answer from.
        """
        ids = self._encode(question + self.after + answer_prefix)
        if not ids:
            raise ValueError("question, chat template and answer prefix are all empty; give a question")
        return ids

    def reference_ids(self, question: str, answer_prefix: str, reference: str) -> list[int]:
        """Token ids of an answer behind its question, a space between words; empty without one."""
        before, answer = question + self.after + answer_prefix, reference.strip()
        return self._encode(answer if not before or before[-1].isspace() else f" {answer}") if answer else []

    def prompt_tokens(self, question: int = 0) -> PromptTokens:
        """What a press may know of the prompt; the last `question` tokens of the context are a question."""
        return PromptTokens(len(self._encode(self.before)), self._encode(self.after), self._encode, question)

    def question_tokens(self, context: str, characters: int) -> list[int]:
        """Positions of the tokens that overlap the last `characters` of the context."""
        return (
            self.evidence_tokens(context, [(len(context) - characters, len(context))]) if characters else []
        )

    def evidence_tokens(self, context: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Positions of the context's tokens (template included) that overlap the character spans."""
        return [
            position
            for position, (first, last) in enumerate(self.token_spans(context))
            if any(first < end and start < last for start, end in spans)
        ]

    def token_spans(self, context: str) -> list[tuple[int, int]]:
        """Characters [start, end) of `context` that each token stands for; negative within the template."""
        encoded = self.tokenizer(
            self.before + context, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        shift = len(self.before)
        return [(first - shift, last - shift) for first, last in encoded["offset_mapping"]]

    def last_id(self, text: str) -> int:
        """The last token of a stop string, which a row that may not end yet must not write."""
        return self._encode(text)[-1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids
