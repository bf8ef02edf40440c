"""The tokenizer that benchmarks are given: it counts whole prompts as the pipeline of a run reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.base import Sample
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.prompt import Prompt


class PromptMeasure:
    """A model's tokenizer, and how many tokens a prompt takes with all that stands around it.

    Everything else is the tokenizer's own.

    Attributes:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any, options: PipelineOptions) -> None:
        """Of a run under these options."""
        self.tokenizer, self._options = tokenizer, options
        self._prompts: dict[bool, Prompt] = {}

    def __getattr__(self, name: str) -> Any:
        """What the tokenizer has."""
        return getattr(self.tokenizer, name)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `token_ids`."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def prompt_tokens(self, context: str, question: str, answer_prefix: str, chat_template: bool) -> int:
        """Tokens that the model reads of a prompt, with the longest thought in front of an answer.

        Raises:
            ValueError: the chat template cannot be used, or nothing is asked.
        """
        prompt = self.prompt(chat_template)
        ids = prompt.ids(context, [(question, answer_prefix)])
        return len(ids.context) + len(ids.questions[0]) + prompt.thinking_tokens(answer_prefix)

    def needed(self, sample: Sample) -> int:
        """Tokens of a sample's prompt and of its longest answer."""
        prompt = self.prompt_tokens(
            sample.context, sample.question, sample.answer_prefix, sample.chat_template
        )
        return prompt + sample.max_new_tokens

    def prompt(self, chat_template: bool) -> Prompt:
        """What stands around contexts and questions.

        Raises:
            ValueError: the chat template cannot be used.
        """
        if chat_template not in self._prompts:
            self._prompts[chat_template] = Prompt.under(self._options, self.tokenizer, chat_template)
        return self._prompts[chat_template]
