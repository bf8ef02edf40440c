"""Decoding of many rows at once: all variants and questions, in as few batches as memory allows.

Rows keep contexts of different lengths per layer and head. A row that ends leaves its batch at once. The
answer of a row does not depend on the rows beside it (in float32: token for token; in bfloat16 within
rounding, since matrix products differ with their size).
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from kvcache.attention import attending
from kvcache.cache import CompressedCache
from kvcache.hooks.decode_hooks import run_held_passes
from kvcache.layer_state import cache_layer
from kvcache.matmul import fast_products
from kvcache.modules import attention_modules, cache_keyword, decoder_of, has_state
from kvcache.projections import query_heads
from kvcache.rope_frequencies import outgrows
from longpress.models.host_memory import return_freed_memory
from longpress.pipeline.clock import now
from longpress.pipeline.compressed_context import CompressedContext
from longpress.pipeline.logits import logits_of
from longpress.pipeline.memory import attention_bytes, logits_bytes
from longpress.pipeline.options import SamplingOptions
from longpress.pipeline.prompt import Prompt
from longpress.pipeline.rows import AfterQuestion, Answer, Row
from longpress.pipeline.sampling import drawn
from longpress.pipeline.thinking import TAIL, Thought

NAN = (
    "the model's logits are NaN; use dtype float32 or bfloat16, and check the press for values it divides by"
)

OUTGREW = (
    "an answer took its text beyond the original window of a model with LongRoPE; it is written on with the "
    "rotary frequencies of its prompt, where transformers may read everything again with others; "
    "records say outgrew_rope"
)

RESERVED = 32
"""Tokens of an answer for which memory is reserved when its row enters; the memory of longer ones grows."""

QUESTION_STEP = 8
"""Questions whose lengths lie within a step of so many tokens are padded and read together.

Not by a model with states of fixed size, from which padding could not be forgotten.
"""


@dataclass(eq=False)
class _Writing:
    """A row in the queue or in the batch.

    Attributes:
        row: what is answered.
        prompt: decodes ids.
        bytes: that the row takes.
        answer: what is written.
        random: draws its tokens, where they are drawn.
        thought: follows what the model thinks before it answers.
    """

    row: Row
    prompt: Prompt
    bytes: int
    answer: Answer
    random: Random = field(default_factory=Random)
    thought: Thought = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the first number."""
        self.random.seed(self.row.question.seed)
        self.thought = self.prompt.thought(self.row.question)

    def restart(self) -> None:
        """Forget what was written, to write the same again."""
        self.answer.restart()
        self.__post_init__()


class Decoder:
    """Writes the answers of a queue of rows, as many together as memory allows.

    Waiting rows enter when others have left.     A batch that has become thin wastes the model's time, so
    rows of the next context may join it: see `run`.
    """

    def __init__(
        self,
        model: nn.Module,
        eos_ids: Sequence[int],
        max_batch_bytes: int,
        keep_questions: bool = False,
        sampling: SamplingOptions | None = None,
    ) -> None:
        """An empty queue.

        Args:
            model: of transformers, in evaluation mode.
            eos_ids: any of them ends an answer.
            max_batch_bytes: bound on the tails and work space of the rows decoded together; a single row may
                exceed it.
            keep_questions: whether answers keep their row as it was after the question, for `read_answer`.
            sampling: how the next token is chosen; None: greedily.
        """
        self.model, self.max_bytes, self.keep_questions = model, max_batch_bytes, keep_questions
        self.sampling = sampling or SamplingOptions()
        self.decoder = decoder_of(model)
        # which token is most likely does not depend on what is done to logits
        self.logits = model.get_output_embeddings() if self.sampling.is_greedy else logits_of(model)  # type: ignore[operator]
        self.query_heads = query_heads(attention_modules(model)[0])
        self.keyword, self.eos_ids = cache_keyword(self.decoder), set(eos_ids)
        self.question_step = 1 if has_state(model) else QUESTION_STEP
        self.may_outgrow_rope = outgrows(model, 0, sys.maxsize)
        self.told_outgrown = False
        self.compact_rows = 0  # in the batch when freed memory was returned last
        self.most_rows = sys.maxsize  # halved when memory runs out, doubled when a batch was written
        self.waiting: deque[_Writing] = deque()
        self.alive: list[_Writing] = []
        self.cache: CompressedCache | None = None
        self.hidden = self.position = torch.empty(0)

    def add(self, prompt: Prompt, rows: Sequence[Row]) -> list[Answer]:
        """Queue rows; their answers are written by `run`."""
        rows = [replace(row, most_tokens=prompt.most_tokens(row.question)) for row in rows]
        queued = [
            _Writing(row, prompt, row_bytes(self.model, row), Answer(question_tokens=len(row.question_ids)))
            for row in rows
        ]
        self.waiting.extend(queued)
        return [writing.answer for writing in queued]

    @property
    def unfinished(self) -> int:
        """Rows whose answers are not written."""
        return len(self.waiting) + len(self.alive)

    def run(self, leave: int = 0) -> None:
        """Write until at most `leave` rows are unfinished.

        Where memory runs out, or anything else fails, the rows at work are written again from their start in
        batches of half as many, down to one; what fails alone has an answer with `error`. So has a row whose
        logits are NaN.
        """
        with attending(self.model), fast_products(), torch.no_grad():
            while self.unfinished > leave:
                try:
                    self._write()
                except Exception as error:
                    self._retreat(error)

    def _write(self) -> None:
        """One step of the batch, after letting rows in."""
        started = now()
        self._admit()
        self._step()
        share = (now() - started) / len(self.alive)
        for writing in self.alive:
            writing.answer.seconds += share
        self._drop_finished()

    def _retreat(self, error: Exception) -> None:
        """After an error: queue the batch again, half as many together; give up a row that failed alone."""
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
        unfinished = [writing for writing in self.alive if not writing.answer.stop_reason]
        self.alive, self.cache, self.hidden, self.position = [], None, torch.empty(0), torch.empty(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(unfinished) == 1:
            unfinished.pop().answer.fail(error)
        for writing in reversed(unfinished):
            writing.restart()
            self.waiting.appendleft(writing)
        self.most_rows = max(1, len(unfinished) // 2)

    def _admit(self) -> None:
        """Let waiting rows in, read their questions, and put them behind those alive."""
        used = sum(writing.bytes for writing in self.alive)
        entering: list[_Writing] = []
        while self.waiting and (
            not (self.alive or entering) or self._fits(used, len(self.alive) + len(entering))
        ):
            used += self.waiting[0].bytes
            entering.append(self.waiting.popleft())
        if not entering:
            return
        groups = questions_of_like_length(entering, self.question_step)
        self.waiting.extendleft(reversed([writing for group in groups for writing in group]))
        for group in groups:  # a row is in the queue or alive, whatever happens
            self.alive += [self.waiting.popleft() for _ in group]
            self._enter(group)

    def _enter(self, entering: list[_Writing]) -> None:
        """Read the questions of rows, and put the rows behind those in the batch."""
        rows = [writing.row for writing in entering]
        capacity = max(len(row.question_ids) + min(row.question.max_new_tokens, RESERVED) for row in rows)
        starts = [row.context.next_position for row in rows]
        decode_hooks = list(zip(*(row.decode_hooks() for row in rows), strict=True))  # per layer, per row
        cache = _cache_of([row.context for row in rows], capacity, decode_hooks)
        device = cache.growing[0].device
        first = torch.tensor(starts, device=device)
        hidden = self._read_questions(rows, cache)
        return_freed_memory()
        if self.keep_questions:
            for writing, after in zip(
                entering, AfterQuestion.of_rows([row.context for row in rows], cache, hidden), strict=True
            ):
                writing.answer.after = after
        position = first + torch.tensor([len(row.question_ids) for row in rows], device=device)
        if self.cache is None:
            self.cache, self.hidden, self.position = cache, hidden, position
        else:
            self.cache.join(cache)
            self.hidden, self.position = (
                torch.cat((self.hidden, hidden)),
                torch.cat((self.position, position)),
            )
        return_freed_memory()
        self.compact_rows = len(self.alive)
        self._measure(len(self.alive) - len(entering))

    def _fits(self, used: int, rows: int) -> bool:
        """Whether the next row may join a batch of so many bytes and rows."""
        return rows < self.most_rows and used + self.waiting[0].bytes <= self.max_bytes

    def _step(self) -> None:
        """One more token for every row alive; rows that end keep their place until `_drop_finished`."""
        assert self.cache is not None
        tokens = self._next_tokens()
        for writing, token in zip(self.alive, tokens.tolist(), strict=True):
            if not writing.answer.stop_reason:
                self._take(writing, token)
        going = [at for at, writing in enumerate(self.alive) if not writing.answer.stop_reason]
        if not going:
            return
        if len(going) < len(self.alive):
            self.cache.keep_rows(going)
            if len(going) < self.compact_rows * 3 // 4:
                return_freed_memory()
                self.compact_rows = len(going)
            tokens, self.position = tokens[going], self.position[going]
        self._note_outgrown()
        self.hidden = self._forward(tokens[:, None], self.position[:, None], self.cache)[:, -1]
        self.position = self.position + 1
        self._measure()

    def _note_outgrown(self) -> None:
        """Note, and say once, which rows read on beyond the window of their prompts' rotary frequencies."""
        if not self.may_outgrow_rope:
            return
        for writing in self.alive:
            row, answer = writing.row, writing.answer
            if answer.stop_reason or answer.outgrew_rope:
                continue
            text = row.prompt_tokens + len(answer.token_ids)
            answer.outgrew_rope = outgrows(self.model, row.context.rope_length, text)
            if answer.outgrew_rope and not self.told_outgrown:
                self.told_outgrown = True
                warnings.warn(OUTGREW, stacklevel=2)

    def _measure(self, first: int = 0) -> None:
        """Note the bytes of the cache of each row being written, from row `first` of the batch on."""
        assert self.cache is not None
        sizes = torch.tensor([layer.bytes_of_rows() for layer in self.cache.growing]).sum(0).tolist()
        going = [writing for writing in self.alive if not writing.answer.stop_reason]
        for writing, size in list(zip(going, sizes, strict=True))[first:]:
            writing.answer.cache_bytes.append(size)

    def _drop_finished(self) -> None:
        self.alive = [writing for writing in self.alive if not writing.answer.stop_reason]
        if not self.alive:
            self.cache = None
            self.most_rows = min(2 * self.most_rows, sys.maxsize)

    def _forward(self, ids: Tensor, positions: Tensor, cache: CompressedCache) -> Tensor:
        """(R, n) ids to hidden states (R, n, D), appending to the cache."""
        output = self.decoder(input_ids=ids, position_ids=positions, use_cache=True, **{self.keyword: cache})
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _read_questions(self, rows: Sequence[Row], cache: CompressedCache) -> Tensor:
        """(R, D): hidden state of each question's last token."""
        for layer in cache.growing:
            layer.held_passes = {}
        hidden = self._read(
            [row.question_ids for row in rows], cache, [len(row.question_ids) - 1 for row in rows]
        )
        for layer in cache.growing:
            run_held_passes(layer)
        return torch.cat(hidden)

    def read_answer(self, rows: Sequence[AfterQuestion], ids: Sequence[int]) -> Tensor:
        """(R, n, D): last hidden states from which rows predict each of the n tokens of a known answer.

        The rows have read the same question.
        """
        tail = rows[0].tails[0][0].shape[1] + len(ids)
        many = max(
            1,
            self.max_bytes
            // max(
                _cache_bytes(self.model, row.context, tail) + len(ids) * row.hidden.nbytes for row in rows
            ),
        )
        hidden = [torch.stack([row.hidden for row in rows])[:, None]]
        if len(ids) > 1:
            with attending(self.model), fast_products(), torch.no_grad():
                groups = [rows[at : at + many] for at in range(0, len(rows), many)]
                read = [
                    self._read([list(ids[:-1])] * len(some), AfterQuestion.cache(some, tail), [0] * len(some))
                    for some in groups
                ]
            hidden.append(torch.stack([of_row for group in read for of_row in group]))
        return torch.cat(hidden, dim=1)

    def read_known(
        self, contexts: Sequence[CompressedContext], ids: Sequence[Sequence[int]], since: Sequence[int]
    ) -> list[Tensor]:
        """Per row (n - since, D): last hidden states of n known tokens, read behind a compressed context.

        Args:
            contexts: of each row.
            ids: of each row; only equal lengths are read together where padding could not be forgotten.
            since: of each row, the first token whose hidden state is wanted.
        """
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        groups = [list(rows) for _, rows in groupby(order, key=lambda row: len(ids[row]))]
        hidden: dict[int, Tensor] = {}
        with attending(self.model), fast_products(), torch.no_grad():
            for rows in groups if self.question_step == 1 else [order]:
                cache = _cache_of([contexts[row] for row in rows], max(len(ids[row]) for row in rows))
                read = self._read([ids[row] for row in rows], cache, [since[row] for row in rows])
                hidden |= dict(zip(rows, read, strict=True))
        return [hidden[row] for row in range(len(ids))]

    def _read(
        self, ids: Sequence[Sequence[int]], cache: CompressedCache, since: Sequence[int]
    ) -> list[Tensor]:
        """Read known tokens into the cache, each row its own.

        Gives the hidden states (n - since, D) of every row from its token `since` on.         Shorter rows
        are padded behind their end, and the padding forgotten.
        """
        layer = cache.growing[0]
        lengths, longest, before = [len(of_row) for of_row in ids], max(map(len, ids)), layer.lengths.tolist()
        padded = torch.tensor(
            [[*of_row, *[of_row[-1]] * (longest - len(of_row))] for of_row in ids], device=layer.device
        )
        first = layer.start + layer.lengths
        entries = max(block.storage.length for one in cache.growing for block in one.blocks) + layer.longest
        piece = max(1, self.max_bytes // (len(ids) * attention_bytes(self.query_heads, entries + longest)))
        hidden: list[list[Tensor]] = [[] for _ in ids]
        for start in range(0, longest, piece):
            part = padded[:, start : start + piece]
            states = self._forward(
                part, first[:, None] + torch.arange(start, start + part.shape[1], device=layer.device), cache
            )
            for row, (length, wanted) in enumerate(zip(lengths, since, strict=True)):
                if wanted < start + part.shape[1] and start < length:
                    hidden[row].append(states[row, max(0, wanted - start) : length - start].clone())
        cache.set_lengths([one + more for one, more in zip(before, lengths, strict=True)])
        return [torch.cat(of_row) for of_row in hidden]

    def _next_tokens(self) -> Tensor:
        """(R,) the next token of each row; what ends an answer only where the row may end."""
        logits = self.logits(self.hidden).float()
        for at, writing in enumerate(self.alive):
            thought, question = writing.thought, writing.row.question
            if len(writing.answer.token_ids) - thought.answer_start < question.min_new_tokens:
                stops = question.stop if thought.is_over else ()
                ends = self.eos_ids | {writing.prompt.last_id(stop) for stop in stops}
                logits[at, sorted(ends)] = float("-inf")
        tokens: Tensor = logits.argmax(-1)  # of a row with NaN: a NaN
        for at in logits.gather(-1, tokens[:, None])[:, 0].isnan().nonzero().flatten().tolist():
            self.alive[at].answer.fail(ValueError(NAN))
        if not self.sampling.is_greedy:
            logits = logits.nan_to_num(0.0, neginf=float("-inf"))
            tokens = drawn(logits, self.sampling, [writing.random for writing in self.alive])
        for at, writing in enumerate(self.alive):
            if writing.thought.forced:
                tokens[at] = writing.thought.forced[0]
        return tokens

    def _take(self, writing: _Writing, token: int) -> None:
        """Take a token into the row's answer, and end the answer where it ends."""
        answer, question, thought = writing.answer, writing.row.question, writing.thought
        if thought.forced:
            answer.token_ids.append(thought.forced.pop(0))
            return
        if token in self.eos_ids and not thought.passes(token):
            answer.stop_reason = "eos"
        else:
            answer.token_ids.append(token)
            thought.take(answer.token_ids)
            stopped = _before_stop(writing)
            if stopped is not None:
                answer.text, answer.stop_reason = stopped, "stop_string"
            elif thought.written(answer.token_ids) == question.max_new_tokens:
                answer.stop_reason = "length"
        if answer.stop_reason:
            thought.finish(answer.token_ids)
            answer.thought, answer.thought_end = thought.text(answer.token_ids), thought.ended
            answer.thinking_tokens = thought.tokens
            if answer.stop_reason != "stop_string":
                answer.text = _answer_text(writing)


def _answer_text(writing: _Writing) -> str:
    """What is written of the answer; white space between a thought and its answer belongs to neither."""
    thought = writing.thought
    text = thought.first + writing.prompt.decode(writing.answer.token_ids[thought.answer_start :])
    return text.lstrip() if thought.ended else text


def _before_stop(writing: _Writing) -> str | None:
    """The answer in front of a stop string; None where none is written, or none counts yet."""
    ids, question, thought = writing.answer.token_ids, writing.row.question, writing.thought
    written = len(ids) - thought.answer_start
    if not question.stop or not thought.is_over or written <= question.min_new_tokens:
        return None

    # a stop string ends with the new token, unless tokens did not count before
    if written > question.min_new_tokens + 1:
        last = writing.prompt.decode(ids[-(TAIL + max(map(len, question.stop))) :])
        if not any(stop in last for stop in question.stop):
            return None
    text = _answer_text(writing)
    ends = [at for at in (text.find(stop) for stop in question.stop) if at >= 0]
    return text[: min(ends)] if ends else None


def _cache_of(
    contexts: Sequence[CompressedContext],
    capacity: int,
    decode_hooks: Sequence[Sequence[Any]] | None = None,
) -> CompressedCache:
    """The cache of rows that read on behind contexts.

    Args:
        contexts: of each row.
        capacity: tokens for which memory is reserved.
        decode_hooks: per layer, what acts on each row; None for nothing.
    """
    starts, layers = [context.next_position for context in contexts], range(len(contexts[0].layers))
    return CompressedCache(
        [
            cache_layer(
                [context.layers[at] for context in contexts],
                [context.states[at] for context in contexts],
                starts,
                capacity,
                [None] * len(contexts) if decode_hooks is None else decode_hooks[at],
            )
            for at in layers
        ],
        [context.rope_length for context in contexts],
    )


def questions_of_like_length(entering: Sequence[_Writing], step: int) -> list[list[_Writing]]:
    """Groups to be read together, so that little is padding; rows that share storage are neighbours.

    Args:
        entering: rows whose questions are to be read.
        step: lengths within it are read together; 1: only equal ones.
    """
    storages = [id(writing.row.context.growing[-1].storage) for writing in entering]
    order = {storage: at for at, storage in enumerate(dict.fromkeys(storages))}
    ranked = sorted(
        zip(entering, storages, strict=True),
        key=lambda one: (len(one[0].row.question_ids) // step, order[one[1]]),
    )
    groups = groupby(ranked, key=lambda one: len(one[0].row.question_ids) // step)
    return [[writing for writing, _ in group] for _, group in groups]


def row_bytes(model: nn.Module, row: Row) -> int:
    """Bytes that a row adds to its batch: tails, masks, attention for one query, and logits.

    Where something acts on the row, also what that remembers, and entries of the row's own in the place of
    shared ones.
    """
    config: Any = model.config
    text, tail = config.get_text_config(), row.tail
    total = _cache_bytes(model, row.context, tail) + logits_bytes(int(text.vocab_size))
    for kept, decode_hook in zip(row.context.layers, row.decode_hooks(), strict=True):
        if decode_hook is not None:
            token = (int(text.hidden_size) + 2 * kept.storage.size) * kept.storage.read_dtype.itemsize
            everything = (kept.storage.length + tail) * kept.storage.heads
            total += kept.bytes() + decode_hook.state_bytes(everything, tail, token)
    return total


def _cache_bytes(model: nn.Module, context: CompressedContext, tail: int) -> int:
    """Bytes of a tail and of a mask in every layer, of one layer's attention for one query, and of states.

    States are there twice while rows leave or join.
    """
    storages = [kept.storage for kept in context.growing]
    entries, sizes = (
        [one.length for one in storages],
        [one.heads * one.size * one.read_dtype.itemsize for one in storages],
    )
    masks = sum(
        kept.storage.heads * kept.storage.length * kept.storage.read_dtype.itemsize
        for kept in context.growing
        if kept.counts is not None
    )
    return (
        masks
        + 2 * context.state_bytes
        + 2 * tail * sum(sizes)
        + attention_bytes(query_heads(attention_modules(model)[0]), max(entries) + tail)
    )
