"""How contexts are read and answers are decoded, whatever is asked: the options of a pipeline.

Importing this module needs no torch. Every field is an option of a run as well (see
`longpress.evaluation.options`), so it is declared here and nowhere else.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, field
from typing import Any

OFFLOAD = ("auto", "always", "never")
"""The choices of `offload`."""


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of options: its default, and the sentence that `--help` prints beside it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
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
        for name in ("prefill_chunk", "compress_every"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"{name}={size!r} must be a positive number of tokens, or null")
        for name in ("max_batch_gb", "max_context_gb"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
                raise ValueError(f"{name}={size!r} must be a positive number of GiB")
        try:
            datetime.date.fromisoformat(self.date)
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
