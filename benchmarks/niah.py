"""Needle in a haystack: one sentence hidden in essays, over a grid of lengths and depths.

Each length is a task.

Source: gkamradt/LLMTest_NeedleInAHaystack at 7b90d28 (needle, grid, insertion after a full stop);
    Zefan-Cai/KVCache-Factory run_needle_in_haystack.py and visualize.py at c97f9d7 (prompt, 30 tokens, and
    the scores that KV-cache papers plot).
Differs: lengths bound the whole prompt and its answer, measured, where the originals reserve 200 tokens;
    depth counts characters of the text, not tokens; ROUGE-1 is computed without stemming; later draws of a
    cell begin at other sentences of the essays, where the original has one draw a cell.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from benchmarks.base import Benchmark, NumberedRows, Prediction, Sample, Tokenizer
from benchmarks.text.fields import text_field
from benchmarks.text.fitting import FittedPrompt, PromptDraft, PromptRecipe, PromptTokenCounter, fit_window
from benchmarks.text.haystacks import KINDS, Haystack, load_haystack
from benchmarks.text.token_counts import Window

NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
"""The sentence that is hidden."""

ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."
"""What the needle says; the heat maps of KV-cache papers compare its words with those of the response."""

MARK, HEAD, TAIL = "<|im_start|> ", "This is a very long story book: <book> ", " </book>.\n"
QUESTION = " Based on the content of the book, Question: The best thing to do in San Francisco is: "
ANSWER_PREFIX = "\nAnswer:"
MAX_NEW_TOKENS = 30
"""Tokens of an answer."""

LENGTHS = tuple(
    str(length) for length in sorted({*range(1000, 129_000, 1000), *(2**power for power in range(9, 18))})
)
"""Tokens; the lengths that may be tasks: every thousand up to 128000, powers of two from 512 to 131072."""


class GridCell(NamedTuple):
    """What one sample of a length shows.

    Attributes:
        draw: number of the text.
        depth: of the needle, in percent of the text.
    """

    draw: int
    depth: int


@dataclass(frozen=True)
class NiahBenchmark(Benchmark):
    """Options of the needle test.

    With `draws=3` and 10 depths a length has 30 samples, ordered so that every ten span all depths.

    Raises:
        ValueError: an unknown length, or a number out of range.
    """

    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(LENGTHS, "word_overlap")

    tasks: tuple[str, ...] = ("1024", "2048", "4096")
    """Lengths in tokens of a prompt and its answer; each is a column of the table."""
    depths: int = 10
    """Places of the needle, evenly from 0 to 100 percent of the text."""
    draws: int = 3
    """Texts per length and depth: one is a single coin toss, so a cell needs several."""
    seed: int = 42
    haystack: str = "auto"
    """"essays" (Paul Graham), "walden" (embedded), "auto" (essays if installed), or "hub" (downloads)."""
    haystack_path: str = ""
    """A folder of .txt files, a .txt file, or a .json file with the key "text"."""
    chat_template: bool = False
    """False: the papers' bare prompt, which begins with "<|im_start|>"; True: the model's own chat template
    instead of that mark."""
    template_tokens: int = 0
    """Tokens kept free of the length for the chat template, at least; what it takes is measured."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run before a model loads."""
        self.check_tasks(LENGTHS)
        self.check_at_least(depths=1, draws=1, template_tokens=0)
        self.check_choices(haystack=KINDS)

    def samples(self, tokenizer: Tokenizer, window: int, limit: int | None = None) -> Iterator[Sample]:
        """Yield the cells of each length, depth by depth, draw after draw; see `Benchmark.samples`.

        Raises:
            ValueError: a length exceeds the window, or is too short for the prompt itself.
        """
        too_long = [task for task in self.tasks if int(task) > window]
        if too_long:
            raise ValueError(
                f"niah: length {', '.join(too_long)} exceeds the model's window of {window} tokens; "
                "choose shorter tasks"
            )
        prose = load_haystack(self.haystack, self.haystack_path)
        counter = PromptTokenCounter(tokenizer)
        steps = self.depths - 1
        depths = [round(100 * step / steps) for step in range(self.depths)] if steps else [50]
        cells = [GridCell(draw, depth) for draw in range(self.draws) for depth in depths]
        for task in self.tasks:
            shared = Window(tokenizer, int(task), MAX_NEW_TOKENS, self.chat_template)
            reserved = MAX_NEW_TOKENS + max(self.template_tokens, shared.around)
            for position, cell in enumerate(cells[:limit]):
                fitted = self._fit(task, cell, prose, counter, reserved, shared)
                yield self._sample(task, position, cell, fitted, fitted.tokens + reserved, prose.source)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Share of the answer's 11 distinct words in the response.

        `word_overlap` compares lower-cased words between spaces ("day." with its full stop), as the heat maps
        do. `substring`: whether the response holds the whole answer. `rouge1_f`: ROUGE-1 F against the
        needle.
        """
        answer = str(sample.references[0]) if sample.references else ANSWER
        wanted, words = set(answer.lower().split()), set(prediction.lower().split())
        return {
            "word_overlap": len(wanted & words) / len(wanted) if wanted else 0.0,
            "substring": float(answer.lower().rstrip(".") in " ".join(prediction.lower().split())),
            "rouge1_f": rouge1_f(str(sample.metadata.get("needle", NEEDLE)), prediction),
        }

    def read_predictions(self, rows: NumberedRows, task: str | None) -> Iterator[Prediction]:
        """Result rows: `model_response` (or `pred`), `needle`, `context_length`, `depth_percent`."""
        for line, row in rows:
            text = text_field(row, "model_response", "pred", where=f"line {line}")
            name = str(task if task is not None else row.get("context_length", ""))
            if name not in LENGTHS:
                raise ValueError(
                    f"line {line}: the length {name!r} is not one of {LENGTHS[0]} … {LENGTHS[-1]}; "
                    "give it as context_length or niah/LENGTH"
                )
            needle = str(row.get("needle", NEEDLE))
            answer = needle.strip().split(" is ", 1)[-1]
            facts = {"needle": needle, "depth": row.get("depth_percent")}
            yield Prediction(Sample(f"{name}/{line}", name, "", QUESTION, (answer,), metadata=facts), text)

    def _fit(
        self,
        task: str,
        cell: GridCell,
        prose: Haystack,
        counter: PromptTokenCounter,
        reserved: int,
        window: Window,
    ) -> FittedPrompt:
        """The longest prompt of a cell that fits its length.

        Args:
            task: the length.
            cell: of the grid.
            prose: to hide the needle in.
            counter: of tokens.
            reserved: tokens of the answer and of what stands around the prompt.
            window: of that length.

        Raises:
            ValueError: not even the shortest one fits.
        """
        head = HEAD if self.chat_template else MARK + HEAD
        start = 0
        if cell.draw:
            start = random.Random(f"niah/{self.seed}/{cell.draw}").randrange(len(prose.sentences))

        def build(size: int) -> PromptDraft:
            text, place = insert(prose.first_words(size, start), cell.depth)
            begin = len(head) + place
            return PromptDraft(
                context=head + text + TAIL,
                question=QUESTION,
                answer_prefix=ANSWER_PREFIX,
                references=(ANSWER,),
                evidence=((begin, begin + len(NEEDLE)),),
                facts={"words": size},
            )

        recipe = PromptRecipe(build, minimum=1, unit_tokens=1.3)
        fitted = fit_window([recipe], counter, int(task) - reserved, window)
        if isinstance(fitted, int):
            raise ValueError(
                f"niah: length {task} is too short with this tokenizer, "
                f"the shortest prompt takes {fitted + reserved} tokens"
            )
        return fitted

    def _sample(
        self, task: str, position: int, cell: GridCell, fitted: FittedPrompt, length: int, source: str
    ) -> Sample:
        draft = fitted.draft
        return Sample(
            id=f"{task}/{position}",
            task=task,
            context=draft.context,
            question=draft.question,
            references=draft.references,
            answer_prefix=draft.answer_prefix,
            max_new_tokens=MAX_NEW_TOKENS,
            evidence=draft.evidence or (),
            chat_template=self.chat_template,
            stop=("\n",),
            metadata={
                "depth": cell.depth,
                "draw": cell.draw,
                "length": length,
                "seed": self.seed,
                "haystack": source,
                **draft.facts,
            },
        )


def insert(sentences: list[str], depth: int) -> tuple[str, int]:
    """Hide the needle at `depth` percent of the text, moved back to the start of a sentence.

    A depth of 100 appends it.

    Returns:
        The text, and the needle's place in it (characters).
    """
    text = " ".join(sentences)
    target = int(len(text) * depth / 100)
    place = begin = 0
    for sentence in sentences:
        if begin <= target:
            place = begin
        begin += len(sentence) + 1
    if depth >= 100:
        place = len(text)
    return text[:place] + NEEDLE + text[place:], place


def rouge1_f(needle: str, response: str) -> float:
    """F1 of the words that needle and response share, counted with repeats.

    Words are runs of letters and digits, lower-cased.
    """
    left, right = (Counter(re.findall(r"[a-z0-9]+", text.lower())) for text in (needle, response))
    shared = (left & right).total()
    return 2 * shared / (left.total() + right.total()) if shared else 0.0
