"""Greedy decoding of many rows at once: all variants and questions of a context, in as few batches as a byte budget allows.

Rows keep contexts of different lengths per layer and head. A row that ends leaves its batch at once. The answer of a row does not
depend on the rows beside it (in float32: token for token; in bfloat16 within rounding, since matrix products differ with their size).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.attention import attending
from kvcache.cache import CompressedCache, CompressedLayer
from kvcache.observation import attention_modules, cache_keyword, decoder_of
from pipeline.prefill import CompressedContext
from pipeline.prompt import Prompt, Question


@dataclass(frozen=True, eq=False)
class Row:
    """One answer to write.

    Attributes:
        context: what the variant keeps.
        question_ids: tokens read after the context.
        question: with its limits; its text is not looked at again.
    """

    context: CompressedContext
    question_ids: list[int]
    question: Question


@dataclass
class Answer:
    """What a row wrote.

    Attributes:
        text: the answer, without stop string and special tokens.
        token_ids: generated tokens, without the one that ended the answer.
        stop_reason: "eos", "stop_string" or "length".
        seconds: the row's share of its batch: step by step, the step's time over the rows alive.
        question_tokens: tokens read after the context.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    stop_reason: str = "length"
    seconds: float = 0.0
    question_tokens: int = 0


def decode(model: nn.Module, prompt: Prompt, rows: Sequence[Row], eos_ids: Sequence[int], max_batch_bytes: int) -> list[Answer]:
    """Answers of all rows, in their order.

    Args:
        model: of transformers, in evaluation mode.
        prompt: whose tokenizer turns ids into text.
        rows: neighbouring rows that share storage are read together; give the variants of one press next to each other.
        eos_ids: any of them ends an answer.
        max_batch_bytes: bound on the tails and work space of one batch; a single row may exceed it.

    Raises:
        ValueError: the model gave NaN.
    """
    answers: list[Answer] = []
    with attending(model), torch.no_grad():
        for batch in batches(model, rows, max_batch_bytes):
            answers += _Batch(model, prompt, batch, eos_ids, max_batch_bytes).run()
    return answers


def batches(model: nn.Module, rows: Sequence[Row], max_batch_bytes: int) -> Iterator[list[Row]]:
    """Consecutive rows whose `row_bytes` sum to at most the budget; always at least one."""
    batch: list[Row] = []
    used = 0
    for row in rows:
        needed = row_bytes(model, row)
        if batch and used + needed > max_batch_bytes:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += needed
    if batch:
        yield batch


def row_bytes(model: nn.Module, row: Row) -> int:
    """Bytes that a row adds to its batch: its tail in every layer, one layer's attention for one query, and the logits."""
    tail = len(row.question_ids) + row.question.max_new_tokens
    entries = [kept.storage.keys.shape[1] for kept in row.context.layers]
    sizes = [kept.storage.keys.shape[0] * kept.storage.size * kept.storage.keys.element_size() for kept in row.context.layers]
    config: Any = model.config
    return 2 * tail * sum(sizes) + _attention_bytes(model, max(entries) + tail) + 8 * int(config.get_text_config().vocab_size)


def _attention_bytes(model: nn.Module, length: int) -> int:
    """Bytes of one query's attention in one layer: logits, their copy, weights in float32 and in the model's dtype."""
    module: Any = attention_modules(model)[0]
    return 16 * int(module.config.num_attention_heads) * length


class _Batch:
    """Rows that are decoded together."""

    def __init__(self, model: nn.Module, prompt: Prompt, rows: Sequence[Row], eos_ids: Sequence[int], max_bytes: int) -> None:
        self.model, self.prompt, self.rows, self.max_bytes = model, prompt, rows, max_bytes
        self.decoder, self.head = decoder_of(model), model.get_output_embeddings()  # type: ignore[operator]
        self.keyword = cache_keyword(self.decoder)
        self.device = rows[0].context.layers[0].storage.keys.device
        self.eos = torch.tensor(sorted(eos_ids), device=self.device)
        self.answers = [Answer(question_tokens=len(row.question_ids)) for row in rows]
        capacity = max(len(row.question_ids) + row.question.max_new_tokens for row in rows)
        starts = [row.context.next_position for row in rows]
        layers = len(rows[0].context.layers)
        self.cache = CompressedCache([CompressedLayer([row.context.layers[i] for row in rows], starts, capacity) for i in range(layers)])
        self.starts = torch.tensor(starts, device=self.device)

    def run(self) -> list[Answer]:
        """Read the questions, then write token by token until every row has ended."""
        started = time.perf_counter()
        hidden = self._read_questions()
        alive = list(range(len(self.rows)))
        position = self.starts + torch.tensor([len(row.question_ids) for row in self.rows], device=self.device)
        while alive:
            tokens = self._next_tokens(hidden, alive)
            share = (time.perf_counter() - started) / len(alive)
            started = time.perf_counter()
            for row in alive:
                self.answers[row].seconds += share
            staying = [i for i, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)) if self._goes_on(row, token)]
            if not staying:
                break
            if len(staying) < len(alive):
                alive = [alive[i] for i in staying]
                self.cache.keep_rows(staying)
                tokens, position = tokens[staying], position[staying]
            hidden = self._forward(tokens[:, None], position[:, None])[:, -1]
            position = position + 1
        return self.answers

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(R, n) ids to hidden states (R, n, D), appending to the cache."""
        output = self.decoder(input_ids=ids, position_ids=positions, use_cache=True, **{self.keyword: self.cache})
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _read_questions(self) -> Tensor:
        """(R, D): hidden state of each question's last token. Shorter questions are padded behind their end, and the padding forgotten."""
        lengths = [len(row.question_ids) for row in self.rows]
        longest = max(lengths)
        ids = torch.tensor(
            [row.question_ids + [row.question_ids[-1]] * (longest - len(row.question_ids)) for row in self.rows], device=self.device
        )
        entries = max(kept.storage.keys.shape[1] for row in self.rows for kept in row.context.layers)
        piece = max(1, self.max_bytes // (len(self.rows) * _attention_bytes(self.model, entries + longest)))
        last: list[Tensor | None] = [None] * len(self.rows)
        for start in range(0, longest, piece):
            part = ids[:, start : start + piece]
            positions = self.starts[:, None] + torch.arange(start, start + part.shape[1], device=self.device)
            hidden = self._forward(part, positions)
            for row, length in enumerate(lengths):
                if start < length <= start + part.shape[1]:
                    last[row] = hidden[row, length - 1 - start]
        self.cache.set_lengths(lengths)
        return torch.stack([state for state in last if state is not None])

    def _next_tokens(self, hidden: Tensor, alive: Sequence[int]) -> Tensor:
        """(R,) the most likely token of each row; end-of-sequence tokens only where the row may end."""
        logits = self.head(hidden).float()
        if bool(logits.isnan().any()):
            raise ValueError("the model's logits are NaN; use dtype float32 or bfloat16, and check the press for values it divides by")
        held = [i for i, row in enumerate(alive) if len(self.answers[row].token_ids) < self.rows[row].question.min_new_tokens]
        if held and len(self.eos):
            logits[torch.tensor(held, device=self.device)[:, None], self.eos] = float("-inf")
        tokens: Tensor = logits.argmax(-1)
        return tokens

    def _goes_on(self, row: int, token: int) -> bool:
        """Take a token into the row's answer; False if the answer has ended."""
        answer, question = self.answers[row], self.rows[row].question
        if bool((self.eos == token).any()):
            answer.stop_reason = "eos"
        else:
            answer.token_ids.append(token)
            if question.stop and len(answer.token_ids) > question.min_new_tokens:
                text = self.prompt.decode(answer.token_ids)
                ends = [at for at in (text.find(stop) for stop in question.stop) if at >= 0]
                if ends:
                    answer.text, answer.stop_reason = text[: min(ends)], "stop_string"
                    return False
            if len(answer.token_ids) < question.max_new_tokens:
                return True
        answer.text = self.prompt.decode(answer.token_ids)
        return False
