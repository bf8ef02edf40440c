"""From text to token ids: the chat template around a context, and the questions that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from kvcache.hooks.prefill import PromptTokens
from longpress.models.chat_template import FIRST_DATE, ChatTemplate
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.thinking import Thinking, Thought, switches_of

LEFT = 64
"""Characters in front of a continuation that can decide how it is split into tokens."""

WORDS = ("Who", "the", "A")
"""Beginnings of texts, by which it is seen whether a tokenizer marks the beginning of a text."""

ANCHORS = ("\n", ".", ")", "1")
"""Texts after which a word may follow without a space; a continuation is encoded behind one of them."""


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
        seed: of the numbers with which tokens are drawn, where they are.
    """

    text: str
    answer_prefix: str = ""
    max_new_tokens: int = 50
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    evidence: tuple[tuple[int, int], ...] = ()
    reference: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an answer of no tokens."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


class PromptIds(NamedTuple):
    """The token ids of a context and of what follows it for each question.

    Attributes:
        context: with what the template puts in front.
        questions: per question, with what the template puts behind, and the answer prefix.
        joint: how many of the context's last tokens are read with the questions, since one token of the whole
            prompt stands across the joint; 0 as a rule.
    """

    context: list[int]
    questions: list[list[int]]
    joint: int


class _Joint(NamedTuple):
    """A continuation: how many of the last tokens before it belong to it, and the ids from the joint on."""

    n_before: int
    ids: list[int]


class Prompt:
    """The text around a context: chat template or none.

    Contexts and questions are tokenised apart, so that their joint is the same for all. Where a tokenizer
    marks the beginning of a text (SentencePiece puts a "▁" there), what follows a context is encoded as its
    continuation, and both together are the ids of the whole prompt.

    Attributes:
        tokenizer: of transformers.
        template: what the chat template puts around a message; None for the bare prompt.
        front: special tokens that the tokenizer puts in front of a bare prompt; what it puts behind one ends
            a text, and is left out.
        before: text in front of the context.
        after: text between the question and the answer prefix.
        marks_beginning: whether the tokenizer marks the beginning of a text.
        thinking: how answers may begin with a thought; None where they do not.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: bool = True,
        *,
        date: str = FIRST_DATE,
        thinking: str = "auto",
        max_thinking_tokens: int | None = None,
        system_prompt: str = "",
    ) -> None:
        """Render the tokenizer's template around a message, or ask what it puts in front of a bare prompt.

        Args:
            tokenizer: of transformers.
            chat_template: False for the bare prompt. A tokenizer without a template always gives it.
            date: that templates print as today's, as YYYY-MM-DD.
            thinking: whether the model thinks, see `switches_of`.
            max_thinking_tokens: after which a thought is closed; None: it shares the answer's limit.
            system_prompt: the system message; empty for none.

        Raises:
            ValueError: a template that cannot be used, or cannot do what is asked.
        """
        self.tokenizer = tokenizer
        self.template: ChatTemplate | None = None
        self.front: list[int] = []
        self.before, self.after = "", ""
        if chat_template and getattr(tokenizer, "chat_template", None):
            self.template = ChatTemplate.of(
                tokenizer, date=date, switches=switches_of(tokenizer, thinking), system=system_prompt
            )
            self.before, self.after = self.template.before, self.template.after
        else:
            asked = {"thinking": thinking not in ("auto", "off"), "system_prompt": bool(system_prompt)}
            asked["max_thinking_tokens"] = max_thinking_tokens is not None
            if needs_template := [name for name, is_asked in asked.items() if is_asked]:
                raise ValueError(
                    f"{', '.join(needs_template)}: these prompts have no chat template around them (the "
                    "suite asks so, or the tokenizer has none); leave this out"
                )
            self.front = self._special_tokens_in_front()
        self.marks_beginning = not any(self._begins_anywhere(*pair) for pair in product(ANCHORS[1:], WORDS))
        self._anchor = next((anchor for anchor in ANCHORS if self._stays(anchor)), ANCHORS[0])
        self.thinking: Thinking | None = None
        if self.template is not None:
            self.thinking = Thinking.of(
                tokenizer, thinking, self.after, max_thinking_tokens, self._continuation
            )

    @classmethod
    def under(cls, options: PipelineOptions, tokenizer: Any, chat_template: bool) -> Prompt:
        """The prompt as the options of a pipeline ask for it."""
        return cls(
            tokenizer,
            chat_template,
            date=options.date,
            thinking=options.thinking,
            max_thinking_tokens=options.max_thinking_tokens,
            system_prompt=options.system_prompt,
        )

    # -- ids --

    def ids(self, context: str, questions: Sequence[tuple[str, str]]) -> PromptIds:
        """Token ids of a context and of the questions, given with their answer prefixes, that follow it.

        Raises:
            ValueError: there is nothing to read, or nothing to answer from.
        """
        if all(self._ends_message(context, question) for question, _ in questions):
            context = context.rstrip()
        ids = self.context_ids(context)
        if not self.marks_beginning:
            return PromptIds(ids, [self.question_ids(*question) for question in questions], 0)

        # Each question as the continuation of this context.
        left = self.before + self._message(context, "")[0]
        joints = [self._joint(left, ids, self._following(*question)) for question in questions]
        n_joint = max((joint.n_before for joint in joints), default=0)
        end = len(ids) - n_joint
        behind = [[*ids[end : len(ids) - joint.n_before], *joint.ids] for joint in joints]
        return PromptIds(ids[:end], behind, n_joint)

    def context_ids(self, context: str) -> list[int]:
        """Token ids of the context with what the template puts in front.

        Raises:
            ValueError: there is nothing to read.
        """
        ids = [*self.front, *self._encode(self.before + self._message(context, "")[0])]
        if not ids:
            raise ValueError("the context is empty, so there is nothing to compress; give at least one token")
        return ids

    def question_ids(self, question: str, answer_prefix: str) -> list[int]:
        """Token ids of what follows a context that ends with a token of its own.

        Raises:
            ValueError: neither question nor template nor answer prefix gives a token to answer from.
        """
        return self._continuation(self._following(question, answer_prefix))

    def reference_ids(self, question: str, answer_prefix: str, reference: str) -> list[int]:
        """Token ids of an answer behind its question, a space between words; empty without one."""
        prefix = answer_prefix if self.thinking is None else ""
        before, answer = question + self.after + prefix, reference.strip()
        if not answer:
            return []
        return self._continuation(answer if not before or before[-1].isspace() else f" {answer}")

    def prompt_tokens(self, question: int = 0) -> PromptTokens:
        """What a press may know of the prompt; the last `question` tokens of the context are a question."""
        before = self._encode(self.before)
        if self.marks_beginning:  # its last token may be part of the context's first word
            before = before[: _shared(before, self._encode(self.before + WORDS[0]))]
        return PromptTokens(
            len(self.front) + len(before), self._continuation(self.after), self._continuation, question
        )

    def last_id(self, text: str) -> int:
        """The last token of a stop string, which a row that may not end yet must not write."""
        return self._encode(text)[-1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    # -- thoughts --

    def thought(self, question: Question) -> Thought:
        """Follows the thought in front of one answer, behind which the answer prefix is read."""
        return Thought(self.thinking, self.tokenizer, self._prefix_ids(question.answer_prefix))

    def most_tokens(self, question: Question) -> int:
        """Most tokens that an answer may have, with its thought and what is read to close it."""
        return question.max_new_tokens + self.thinking_tokens(question.answer_prefix)

    def thinking_tokens(self, answer_prefix: str) -> int:
        """Most tokens between the question and what is written of the answer itself."""
        if self.thinking is None:
            return 0
        return self.thinking.most_tokens + len(self._prefix_ids(answer_prefix))

    def _prefix_ids(self, answer_prefix: str) -> list[int]:
        """The answer prefix as it is read behind a thought; none where there is no thought."""
        if self.thinking is None or not answer_prefix:
            return []
        return self._continuation(answer_prefix)

    # -- where tokens stand --

    def question_tokens(self, context: str, characters: int) -> list[int]:
        """Positions of the tokens that overlap the last `characters` of the context."""
        if not characters:
            return []
        found = self.evidence_tokens(context, [(len(context) - characters, len(context))])
        if found is None:  # those that are not the same without the question
            ids = self.context_ids(context)
            found = list(range(_shared(ids, self.context_ids(context[:-characters])), len(ids)))
        return found

    def evidence_tokens(self, context: str, spans: Sequence[tuple[int, int]]) -> list[int] | None:
        """Positions of the context's tokens (template included) that overlap the character spans.

        None where it cannot be told where tokens stand.
        """
        of_tokens = self.token_spans(context)
        return None if of_tokens is None else overlapping(of_tokens, spans)

    def token_spans(self, context: str) -> list[tuple[int, int]] | None:
        """Characters [start, end) of `context` that each token stands for; negative within the template.

        None where the tokenizer gives no offsets, and its tokens, decoded one after the other, do not give
        the text back either.
        """
        message = self._message(context, "")[0]
        text = self.before + message
        spans = self._offsets(text)
        if spans is None:
            spans = self._spans_by_decoding(text)
        if spans is None:
            return None
        shift = len(self.before) - (len(context) - len(message))
        return [*[(-1, 0)] * len(self.front), *((first - shift, last - shift) for first, last in spans)]

    def _offsets(self, text: str) -> list[tuple[int, int]] | None:
        """Characters of each token, if the tokenizer says so."""
        try:
            encoded = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            return [(first, last) for first, last in encoded["offset_mapping"]]
        except Exception:  # slow tokenizers refuse, others do not know the word
            return None

    def _spans_by_decoding(self, text: str) -> list[tuple[int, int]] | None:
        """The same from the text that a growing number of tokens gives; None where it is not this text."""
        ids = self._encode(text)
        spans: list[tuple[int, int]] = []
        start = at = 0  # the first token of the piece that is decoded, and where the piece begins in the text
        for end in range(1, len(ids) + 1):
            piece: str = self.tokenizer.decode(
                ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if not piece or piece.endswith("\ufffd"):  # part of a character, or white space alone
                continue
            rest = text[at : at + LEFT]
            dropped = len(rest) - len(rest.lstrip())  # white space in front may not be given back
            found = text.find(piece, at, at + dropped + len(piece))
            if found < 0:
                return None
            stop = found + len(piece)
            spans += [(at, stop)] * (end - start)
            start, at = end, stop
        if text[at:].strip():
            return None
        return [*spans, *[(at, len(text))] * (len(ids) - start)]

    # -- what makes the key of a record --

    def beyond_first(self, context: str, question: str) -> dict[str, Any]:
        """What the first version of longpress would not have read, as plain values; empty as a rule.

        Whatever a template, a tokenizer or an option adds to a prompt beside its own text is in here unless
        the first version added the same, so that answers to other prompts have other keys.
        """
        beyond: dict[str, Any] = {}
        if self.template is not None and not self.template.is_first:
            beyond["template"] = [self.before, self.after]
        is_stripped = self._message(context, question) != (context, question)
        if is_stripped or self._ends_message(context, question):
            beyond["stripped"] = True
        if self.front and self.front != [self.tokenizer.bos_token_id]:
            beyond["front"] = self.front
        if self.marks_beginning:
            beyond["joint"] = "continued"
        if self.thinking is not None:
            beyond["thoughts"] = [self.thinking.marks.end, self.thinking.limit]
        return beyond

    def described(self) -> dict[str, Any]:
        """What stands around a context and its question, for the description of a run."""
        joint = "continued" if self.marks_beginning else "tokenised apart"
        return {
            "before": self.before,
            "after": self.after,
            "special_tokens_in_front": self.tokenizer.convert_ids_to_tokens(self.front),
            "context_and_question": joint,
            "thoughts_end_with": None if self.thinking is None else self.thinking.marks.end,
        }

    # -- encoding --

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _message(self, context: str, question: str) -> tuple[str, str]:
        """Context and question as the template shows them."""
        return (context, question) if self.template is None else self.template.stripped(context, question)

    def _ends_message(self, context: str, question: str) -> bool:
        """Whether a context ends the message with white space that the template removes."""
        strips_end = self.template is not None and self.template.strips_end
        return strips_end and not question.strip() and context != context.rstrip()

    def _following(self, question: str, answer_prefix: str) -> str:
        """The text behind a context.

        Raises:
            ValueError: it is empty.
        """
        # no answer is begun where a thought is
        prefix = answer_prefix if self.thinking is None else ""
        text = self._message("", question)[1] + self.after + prefix
        if not self._encode(text):
            raise ValueError("question, chat template and answer prefix are all empty; give a question")
        return text

    def _continuation(self, text: str) -> list[int]:
        """Ids of a text that follows another which ends with a token of its own."""
        if not self.marks_beginning:
            return self._encode(text)
        anchor = self._encode(self._anchor)
        ids = self._encode(self._anchor + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._encode(text)

    def _joint(self, left: str, left_ids: Sequence[int], text: str) -> _Joint:
        """The continuation of a text, cut on a token boundary of both together.

        Args:
            left: the text in front.
            left_ids: its ids.
            text: that follows.
        """
        near = left[-LEFT:]
        alone, together = self._encode(near), self._encode(near + text)
        shared = _shared(alone, together)
        n_before = len(alone) - shared
        if n_before >= len(left_ids) or list(left_ids[len(left_ids) - n_before :]) != alone[shared:]:
            return _Joint(0, self._continuation(text))
        return _Joint(n_before, together[shared:])

    def _special_tokens_in_front(self) -> list[int]:
        """Special tokens that the tokenizer puts in front of a text."""
        probe = " ".join(WORDS)
        alone = self._encode(probe)
        ids: list[int] = self.tokenizer(probe, verbose=False).input_ids
        starts = (at for at in range(len(ids)) if ids[at : at + len(alone)] == alone)
        return ids[: next(starts, 0)]

    def _begins_anywhere(self, anchor: str, word: str) -> bool:
        """Whether a word has the tokens behind `anchor` that it has at the beginning of a text."""
        ids = self._encode(word)
        return self._encode(anchor + word)[-len(ids) :] == ids

    def _stays(self, anchor: str) -> bool:
        """Whether an anchor keeps its tokens, and these alone, whatever follows it."""
        alone = self._encode(anchor)
        return bool(alone) and all(
            self._encode(anchor + word)[: len(alone)] == alone for word in (*WORDS, "\n", " ", " A")
        )


def overlapping(of_tokens: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Positions of the tokens whose characters overlap any of the spans; both as [start, end)."""
    return [
        position
        for position, (first, last) in enumerate(of_tokens)
        if any(first < end and start < last for start, end in spans)
    ]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning of two sequences of ids."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))
