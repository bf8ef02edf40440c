"""How contexts are read and answers are decoded, whatever is asked: the options of a pipeline.

Importing this module needs no torch. Every field is an option of a run as well (see
`longpress.evaluation.options`), so it is declared here and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date as calendar_date
from typing import Any

EFFORTS = ("low", "medium", "high")
"""How long a model thinks, where its chat template takes that."""
THINKING = ("auto", "on", "off", *EFFORTS)
"""The choices of `thinking`."""
OFFLOAD = ("auto", "always", "never")
"""The choices of `offload`."""


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of options: its default, and the sentence that `--help` prints beside it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen.

    Raises:
        ValueError: an option has a value that is not allowed; says which are.
    """

    temperature: float = option(
        0.0, "divides the logits before a token is drawn; 0: always the most likely token (greedy)"
    )
    top_p: float = option(
        1.0, "draw from the most likely tokens that have this probability together; 1: from all"
    )
    top_k: int = option(0, "draw from so many of the most likely tokens; 0: from all")
    min_p: float = option(
        0.0, "draw from tokens at least so likely as this share of the most likely one; 0: from all"
    )

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        for name, allowed, fits in (
            ("temperature", "a number from 0 (greedy) on", 0 <= _number(self.temperature) < math.inf),
            ("top_p", "a number above 0 and at most 1", 0 < _number(self.top_p) <= 1),
            ("min_p", "a number from 0 to below 1", 0 <= _number(self.min_p) < 1),
            ("top_k", "a number of tokens, or 0 for all", type(self.top_k) is int and self.top_k >= 0),
        ):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}")

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is always the most likely one."""
        return self.temperature == 0


def _number(value: Any) -> float:
    """A number as it is given; NaN, which lies in no range, of anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


@dataclass(frozen=True, kw_only=True)
class ThinkingOptions:
    """What stands in front of an answer.

    Raises:
        ValueError: an option has a value that is not allowed; says which are.
    """

    thinking: str = option(
        "auto",
        "whether the model thinks before it answers, by its chat template's own switch: on, off, low, medium "
        "or high; auto: off where there is a switch",
    )
    max_thinking_tokens: int | None = option(
        None,
        "tokens after which a thought is closed, so that an answer of the suite's own length follows; null: "
        "thought and answer share the limit of the answer",
    )
    system_prompt: str = option("", "the system message in front of the prompt; empty: none")

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        if self.thinking not in THINKING:
            raise ValueError(f"thinking={self.thinking!r} must be one of {', '.join(THINKING)}")
        limit = self.max_thinking_tokens
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"max_thinking_tokens={limit!r} must be a positive number of tokens, or null")


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(SamplingOptions, ThinkingOptions):
    """How a pipeline reads contexts and decodes answers.

    Raises:
        ValueError: an option has a value that is not allowed; says which are.
    """

    prefill_chunk: int | None = option(
        None,
        "tokens that the shared prefill reads at a time (exact; bounds activation memory); null: all at once",
    )
    compress_every: int | None = option(
        None,
        "compress after every so many tokens while the context is read, so that the peak of the cache "
        "shrinks; each variant then reads the context by itself; null: compress once the context is read",
    )
    max_batch_gb: float = option(2.0, "bound on the memory of one decode batch, GiB")
    max_context_gb: float = option(
        2.5,
        "bound on the caches of contexts whose answers are decoded together, GiB; one may exceed it",
    )
    offload: str = option(
        "auto",
        "caches lie in host memory: auto: where a context does not fit the GPU (slow, exact); always; never",
    )
    date: str = option(
        "2024-07-26",
        "today's date as chat templates print it (YYYY-MM-DD), so that prompts do not change overnight",
    )
    end_tokens: str | tuple[str, ...] = option(
        (),
        "tokens that end an answer besides those that the checkpoint names and the one with which its chat "
        "template ends a turn, e.g. ['<|im_end|>']",
    )
    fidelity: bool = option(
        False, "measure how far each press moves the model along known answers, too (fidelity.csv)"
    )

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        SamplingOptions.__post_init__(self)
        ThinkingOptions.__post_init__(self)
        for name in ("prefill_chunk", "compress_every"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"{name}={size!r} must be a positive number of tokens, or null")
        for name in ("max_batch_gb", "max_context_gb"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
                raise ValueError(f"{name}={size!r} must be a positive number of GiB")
        try:
            calendar_date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"date={self.date!r} must be a day as YYYY-MM-DD, e.g. 2024-07-26") from error
        if not all(isinstance(token, str) and token for token in self.ends()):
            raise ValueError(
                f"end_tokens={self.end_tokens!r} must be texts of tokens, e.g. ['<|im_end|>'], or [] for none"
            )
        if self.offload not in OFFLOAD:
            raise ValueError(
                f"offload={self.offload!r} must be 'auto' (caches lie in host memory where a context does "
                "not fit the GPU), 'always' or 'never'"
            )

    def ends(self) -> tuple[str, ...]:
        """`end_tokens` as a tuple."""
        return (self.end_tokens,) if isinstance(self.end_tokens, str) else tuple(self.end_tokens)
