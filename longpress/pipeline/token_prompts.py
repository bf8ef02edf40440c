"""Whole prompts in token ids, as other harnesses make them: all but the last tokens are compressed.

The last tokens are read behind the compressed context, as a question is, and what follows them is written or
scored. So everything that is measured is read from the compressed cache, the first token included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.decode import Decoder
from longpress.pipeline.logits import logits_of
from longpress.pipeline.prompt import Prompt, Question
from longpress.pipeline.rows import Answer, Row
from longpress.pipeline.variants import Variant


class Likelihood(NamedTuple):
    """How likely the model finds a continuation.

    Attributes:
        log_probability: of all its tokens together, in nats.
        is_greedy: whether each of them is the most likely one.
    """

    log_probability: float
    is_greedy: bool


class TokenPrompts:
    """Answers and likelihoods behind prompts that one press compresses at its own budget.

    Attributes:
        variant: the press.
        last_tokens: of a prompt, so many are read behind what is compressed.
        kept_fractions: measured share of the cache's bytes that was kept, of every context read so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Prompt,
        read: Callable[[Sequence[int], int, Variant], CompressedContext],
        variant: Variant,
        last_tokens: int = 1,
    ) -> None:
        """See `CompressingPipeline.token_prompts`.

        Args:
            decoder: that writes answers.
            prompt: that decodes them.
            read: compresses a context, given in token ids, of a prompt of so many tokens.
            variant: the press and its budget.
            last_tokens: at least 1.

        Raises:
            ValueError: `last_tokens` is not positive.
        """
        if last_tokens < 1:
            raise ValueError(
                f"last_tokens={last_tokens} must be at least 1: what is written next is predicted from them"
            )
        self.decoder, self.prompt, self.read = decoder, prompt, read
        self.variant, self.last_tokens = variant, last_tokens
        self.kept_fractions: list[float] = []

    def answers(self, prompts: Sequence[Sequence[int]], question: Question) -> list[Answer]:
        """What the model writes behind each prompt.

        Args:
            prompts: of two tokens or more each. They are decoded together.
            question: tells when an answer ends; its text is not looked at.

        Raises:
            ValueError: a prompt of one token, or whatever stops an answer.
        """
        parts = [self._parts(ids) for ids in prompts]
        contexts = self._contexts(parts)
        rows = [
            Row(context, last, question, self.variant.for_context(context.tokens))
            for context, (_, last) in zip(contexts, parts, strict=True)
        ]
        answers = self.decoder.add(self.prompt, rows)
        self.decoder.run()
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return answers

    def likelihoods(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[Likelihood]:
        """How likely each continuation is behind its prompt; equal prompts are compressed once.

        Raises:
            ValueError: a prompt of one token, an empty continuation, or a press that acts while answers are
                written.
        """
        if self.variant.acts_while_decoding:
            raise ValueError(
                f"press {self.variant.press.name} acts while answers are written, token by token, so it has "
                "no part in how likely a given one is; use a task that generates, or another press"
            )
        parts = [self._parts(ids) for ids in prompts]
        contexts = self._contexts(parts)
        known = [
            [*last, *continuation[:-1]] for (_, last), continuation in zip(parts, continuations, strict=True)
        ]
        since = [len(last) - 1 for _, last in parts]
        hidden = self.decoder.read_known(contexts, known, since)
        return [self._likelihood(*row) for row in zip(hidden, continuations, strict=True)]

    @torch.no_grad()
    def _likelihood(self, hidden: Tensor, continuation: Sequence[int]) -> Likelihood:
        """Of n tokens, by the hidden states (n, D) that predict them."""
        if not continuation:
            raise ValueError("a continuation is empty, so nothing is to be scored; give at least one token")
        logits = logits_of(self.decoder.model)(hidden).float().log_softmax(-1)  # (n, V)
        targets = torch.tensor(continuation, device=logits.device)
        chosen = logits.gather(-1, targets[:, None])
        return Likelihood(float(chosen.double().sum()), bool((logits.argmax(-1) == targets).all()))

    def _parts(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """What is compressed of a prompt, at least one token, and what is read behind it, at least one."""
        if len(ids) < 2:
            raise ValueError(
                f"a prompt of {len(ids)} tokens has nothing to compress; give one of at least two tokens"
            )
        at = max(1, len(ids) - self.last_tokens)
        return list(ids[:at]), list(ids[at:])

    def _contexts(self, prompts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[CompressedContext]:
        """What the press keeps of each context; equal ones of prompts of one length are read once.

        Args:
            prompts: the context of each, and what is read behind it.
        """
        keys = [(tuple(context), len(context) + len(last)) for context, last in prompts]
        unique = {key: self.read(*key, self.variant) for key in dict.fromkeys(keys)}
        self.kept_fractions += [context.kept_fraction for context in unique.values()]
        return [unique[key] for key in keys]
