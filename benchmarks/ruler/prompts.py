"""RULER's thirteen tasks: their texts, sizes, answer lengths and metrics; how a prompt splits into parts.

Source: NVIDIA/RULER at c3f5e3b, scripts/synthetic.yaml and scripts/data/synthetic/constants.py (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.base import PromptParts
from benchmarks.text.spans import Spans

NEEDLE = "One of the special magic {type} for {key} is: {value}."
"""The sentence that says what is asked for."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The sentence that is repeated around needles and assignments."""


@dataclass(frozen=True)
class RulerTask:
    """One of the thirteen tasks.

    The prompt is `head + body + tail` (context), `question`, `answer_prefix`; braces stand for what a sample
    fills in.
    """

    kind: str
    """"niah" (needles), "vt" (variable tracking), "cwe" (common words), "fwe" (frequent words) or "qa"."""
    max_new_tokens: int
    head: str
    tail: str
    question: str
    answer_prefix: str
    metric: str = "string_match_all"
    haystack: str = ""
    """niah: "noise" (one sentence repeated), "essay" (prose) or "needle" (needles that nobody asks for)."""
    key_type: str = "words"
    value_type: str = "numbers"
    n_keys: int = 1
    """niah: keys that are hidden, queried or not."""
    n_values: int = 1
    """niah: values per key."""
    n_queries: int = 1
    """niah: keys asked for."""

    def context(self, body: str) -> str:
        """The context around `body`."""
        return self.head + body + self.tail


def _niah(
    haystack: str,
    *,
    keys: str = "words",
    values: str = "numbers",
    n_keys: int = 1,
    n_values: int = 1,
    n_queries: int = 1,
) -> RulerTask:
    # The official generator rewrites its template to the singular; the needles keep the plural.
    if n_values * n_queries == 1:
        kind, some, are, what = values.removesuffix("s"), "A", "is", "is"
    else:
        kind, some, are, what = values, "Some", "are", "are all"
    return RulerTask(
        kind="niah",
        max_new_tokens=128,
        head=f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n",
        tail="\n",
        question=f"What {what} the special magic {kind} for {{query}} mentioned in the provided text?",
        answer_prefix=f" The special magic {kind} for {{query}} mentioned in the provided text {are}",
        haystack=haystack,
        key_type=keys,
        value_type=values,
        n_keys=max(n_keys, n_queries),
        n_values=n_values,
        n_queries=n_queries,
    )


_INSTRUCTION = (
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\n"
)
_QA = RulerTask(
    kind="qa",
    max_new_tokens=32,
    head=f"{_INSTRUCTION}The following are given documents.\n\n",
    tail="\n\n",
    question=f"{_INSTRUCTION}Question: {{query}}",
    answer_prefix=" Answer:",
    metric="string_match_part",
)

TASKS: Mapping[str, RulerTask] = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essay"),
    "niah_single_3": _niah("essay", values="uuids"),
    "niah_multikey_1": _niah("essay", n_keys=4),
    "niah_multikey_2": _niah("needle"),
    "niah_multikey_3": _niah("needle", keys="uuids", values="uuids"),
    "niah_multivalue": _niah("essay", n_values=4),
    "niah_multiquery": _niah("essay", n_queries=4),
    "vt": RulerTask(
        kind="vt",
        max_new_tokens=30,
        head="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        tail="\n",
        question="Question: Find all variables that are assigned the value {query} in the text above.",
        answer_prefix=" Answer: According to the chain(s) of variable assignment in the text above, "
        "5 variables are assigned the value {query}, they are: ",
    ),
    "cwe": RulerTask(
        kind="cwe",
        max_new_tokens=120,
        head="Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n",
        tail="\n",
        question="Question: What are the 10 most common words in the above list?",
        answer_prefix=" Answer: The top 10 words that appear most often in the list are:",
    ),
    "fwe": RulerTask(
        kind="fwe",
        max_new_tokens=50,
        head="Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. ",
        tail="\n",
        question="Question: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?",
        answer_prefix=" Answer: According to the coded text above, "
        "the three most frequently appeared words are:",
    ),
    "qa_1": _QA,
    "qa_2": _QA,
}
"""Name -> task, in the official order; variable tracking has 1 chain of 4 hops, hence 5 variables."""


def split_prompt(task: RulerTask, prompt: str) -> PromptParts | None:
    """Cut an official prompt (input and answer prefix, joined) into context, question and answer prefix.

    The question starts at the last occurrence of its first words, the answer prefix at the last occurrence of
    its first ten characters after that (the official rule; it also covers old files that spell "assgined").
    A model template around the task stays where it is: its head in the context, its tail at the end of the
    question.

    Returns:
        The three parts, which concatenate to `prompt`, or None where the prompt is not one of this task.
    """
    begin = prompt.rfind(task.question.split("{", 1)[0][:30])
    if begin < 0:
        return None
    prefix = prompt.rfind(task.answer_prefix[:10], begin)
    if prefix < 0:
        return None
    return PromptParts(prompt[:begin], prompt[begin:prefix], prompt[prefix:])


def find_evidence(task: RulerTask, context: str, references: tuple[str, ...]) -> Spans:
    """Spans of `context` that hold the answer: needle sentences, assignments, or the counted words.

    The in-context example is left out. Question answering is not covered: only the generator knows which
    paragraph is meant.
    """
    words = "|".join(re.escape(reference) for reference in references)
    if not words or task.kind == "qa":
        return ()
    pattern = {
        "niah": rf"One of the special magic \w+ for [^\n:]{{1,80}}? is: (?:{words})\.",
        "vt": rf"VAR (?:{words}) = (?:VAR )?\w+",
        "cwe": rf"(?<=\d\. )(?:{words})(?=\s)",
        "fwe": rf"(?<=\s)(?:{words})(?=\s)",
    }[task.kind]
    begin = max(context.rfind(task.head.strip()), 0)
    return tuple(match.span() for match in re.compile(pattern).finditer(context, begin))
