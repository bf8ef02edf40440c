"""How many tokens texts take, and how many a model's context window leaves for them."""

from __future__ import annotations

from benchmarks.base import Tokenizer

TEMPLATE_TOKENS = 64
"""Tokens that are kept free for the chat template around a prompt."""

BARE_PROMPT_TOKENS = 8
"""Tokens that are kept free beside a prompt without chat template, for special tokens in front of it."""


def count_tokens(tokenizer: Tokenizer, *parts: str) -> int:
    """Tokens of texts that are tokenised apart, without special tokens."""
    return sum(len(tokenizer.encode(part, add_special_tokens=False)) for part in parts if part)


def surely_fit(limit: int, *parts: str) -> bool:
    """Whether texts have at most `limit` tokens whatever the tokenizer: a token holds at least one byte."""
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts) <= limit


def prompt_room(window: int, max_new_tokens: int, chat_template: bool) -> int:
    """Tokens that a context window leaves for a prompt, beside its answer and what stands around it."""
    return window - max_new_tokens - (TEMPLATE_TOKENS if chat_template else BARE_PROMPT_TOKENS)


def check_window(
    *parts: str, max_new_tokens: int, tokenizer: Tokenizer, window: int, what: str, fix: str
) -> None:
    """Refuse a prompt that does not fit into the context window, for suites without a rule to cut it.

    Args:
        parts: of the prompt, tokenised apart.
        max_new_tokens: of the answer.
        tokenizer: of the model under test.
        window: its context window in tokens.
        what: the prompt is, the subject of the error's sentence.
        fix: what the user should do instead, for the error.

    Raises:
        ValueError: prompt and answer exceed the window.
    """
    if surely_fit(window - max_new_tokens, *parts):
        return
    tokens = count_tokens(tokenizer, *parts) + max_new_tokens
    if tokens > window:
        raise ValueError(
            f"{what} takes {tokens} tokens, the model's window has {window}, "
            f"and the suite has no rule to cut prompts; {fix}"
        )
