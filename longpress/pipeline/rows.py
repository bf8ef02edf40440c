"""Rows, which the decoder is given: one question to one compressed context each, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvcache.cache import CompressedCache
from kvcache.hooks.decode_hooks import DecodeHook
from kvcache.layer_state import LayerState, cache_layer
from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.prompt import Question
from longpress.pipeline.variants import Variant


@dataclass(frozen=True, eq=False)
class AfterQuestion:
    """A row whose question has been read and whose answer has not begun: known answers can be read from here.

    Attributes:
        context: what the variant keeps.
        tails: per layer with keys and values, those (H, q, d) of the question.
        states: per layer, its state of fixed size after the question, or None.
        hidden: (D,) last hidden state of the question's last token.
    """

    context: CompressedContext
    tails: list[tuple[Tensor, Tensor]]
    states: list[LayerState | None]
    hidden: Tensor

    @classmethod
    def of_rows(
        cls, contexts: Sequence[CompressedContext], cache: CompressedCache, hidden: Tensor
    ) -> list[AfterQuestion | None]:
        """The rows of a cache whose tails hold their questions, with `hidden` (R, D).

        None for a row with decode_hooks: they act pass by pass, so an answer read in one pass is not what
        they would have made of it.
        """
        layers = cache.growing
        lengths = layers[0].lengths.tolist()
        rows: list[AfterQuestion | None] = []
        for row, (context, n) in enumerate(zip(contexts, lengths, strict=True)):
            tails = [
                (layer.tail_keys[row, :, :n].clone(), layer.tail_values[row, :, :n].clone())
                for layer in layers
            ]
            states = [LayerState.of_row(layer, row) for layer in cache.layers]
            acting = any(layer.decode_hooks[row] for layer in layers)
            rows.append(None if acting else cls(context, tails, states, hidden[row]))
        return rows

    @property
    def bytes(self) -> int:
        """Bytes of the question's keys and values, and of the states after it."""
        states = sum(state.bytes for state in self.states if state is not None)
        return states + sum(part.nbytes for pair in self.tails for part in pair)

    @staticmethod
    def cache(rows: Sequence[AfterQuestion], capacity: int) -> CompressedCache:
        """The cache of rows that have read questions of one length, with room for `capacity` tokens."""
        starts = [row.context.next_position for row in rows]
        cache = CompressedCache(
            [
                cache_layer(
                    [row.context.layers[index] for row in rows],
                    [row.states[index] for row in rows],
                    starts,
                    capacity,
                )
                for index in range(len(rows[0].states))
            ],
            [row.context.rope_length for row in rows],
        )
        for at, layer in enumerate(cache.growing):
            keys, values = (torch.stack([row.tails[at][part] for row in rows]) for part in (0, 1))
            layer.tail_keys[:, :, : keys.shape[2]], layer.tail_values[:, :, : keys.shape[2]] = keys, values
            layer.set_lengths([keys.shape[2]] * len(rows))
        return cache


@dataclass(frozen=True, eq=False)
class Row:
    """One answer to write.

    Attributes:
        context: what the variant keeps.
        question_ids: tokens read after the context.
        question: with its limits; its text is not looked at again.
        variant: press and budget, whose decode hooks act while the answer is written.
        most_tokens: of the answer with its thought; 0: the question's own limit.
    """

    context: CompressedContext
    question_ids: list[int]
    question: Question
    variant: Variant
    most_tokens: int = 0

    @property
    def tail(self) -> int:
        """Most tokens that are read behind the context."""
        return len(self.question_ids) + (self.most_tokens or self.question.max_new_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of context and question together."""
        return self.context.tokens + len(self.question_ids)

    def decode_hooks(self) -> list[DecodeHook | None]:
        """One per layer of the model; layers left whole have none."""
        layers = range(len(self.context.layers))
        if not self.variant.acts_while_decoding:
            return [None for _ in layers]
        press, budget = self.variant.press, self.variant.budget
        return [press.decode_hook(budget) if at in self.context.observed else None for at in layers]


@dataclass
class Answer:
    """What a row wrote.

    Attributes:
        text: the answer, without stop string, special tokens and thought.
        token_ids: tokens written behind the question, those of a thought and of what closed it included,
            without the one that ended the answer.
        stop_reason: "eos", "stop_string", "length" or "error"; empty while the answer is being written.
        seconds: the row's share of its batch: step by step, the step's time over the rows alive.
        question_tokens: tokens read after the context.
        outgrew_rope: whether the text came to be longer than the window of its prompt's rotary frequencies,
            which a model would replace for so long a prompt; see `kvcache.rope_frequencies`.
        error: why the answer could not be written.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    stop_reason: str = ""
    seconds: float = 0.0
    question_tokens: int = 0
    outgrew_rope: bool = False
    cache_bytes: list[int] = field(default_factory=list)
    """Bytes of the row's cache after the question and after each token read since."""
    thought: str = ""
    """What the model thought before it answered, without the marks around it."""
    thinking_tokens: int = 0
    """Tokens of the thought, its marks included."""
    thought_end: str = ""
    """How the thought ended, see `Thought.ended`; empty where there was none."""
    error: Exception | None = None
    after: AfterQuestion | None = None
    """The row after its question, where the decoder was asked to keep it and no decode hook acts on it."""
    fidelity: dict[str, float] = field(default_factory=dict)
    """See `longpress.pipeline.fidelity.measure`; empty where it was not asked for."""

    def restart(self) -> None:
        """Forget what was written."""
        self.text, self.token_ids, self.seconds, self.cache_bytes, self.after = "", [], 0.0, [], None
        self.thought, self.thinking_tokens, self.thought_end = "", 0, ""
        self.outgrew_rope = False

    def fail(self, error: Exception) -> None:
        """End the answer without a text."""
        self.restart()
        self.stop_reason, self.error = "error", error
