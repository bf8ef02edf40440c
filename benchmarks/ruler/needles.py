"""RULER's retrieval tasks: needles in a haystack (niah) and chains of assignments (vt).

Every draw comes from a generator seeded by run, task, length and row, so a sample never depends on the
samples before it.

Source: NVIDIA/RULER scripts/data/synthetic/{niah,variable_tracking}.py at c3f5e3b.
Differs: keys and values of a sample are distinct; vt's example has the official length, its names and places
    are drawn per sample.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from benchmarks.ruler.prompts import NEEDLE, NOISE, RulerTask
from benchmarks.ruler.words import word_lists
from benchmarks.text.fitting import PromptDraft, PromptRecipe, PromptTokenCounter, fit_prompt
from benchmarks.text.haystacks import Haystack

DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Percent; the 40 places for needles in prose."""

_EXAMPLE_TOKENS = 500
"""The official bound on vt's worked example."""


class AssignmentChain(NamedTuple):
    """Variables of which each is assigned the one before it.

    Attributes:
        value: that the first is assigned.
        names: of the variables, in order.
    """

    value: str
    names: tuple[str, ...]


def niah(task: RulerTask, label: str, haystack: Haystack | None) -> list[PromptRecipe]:
    """Needles in noise, in prose, or among other needles.

    Args:
        task: sizes and texts.
        label: seeds this sample.
        haystack: the prose; needed by tasks whose haystack is "essay" only.
    """
    # What is hidden, and what is asked for.
    rng = random.Random(label)
    used: set[str] = set()
    keys = [_draw(rng, task.key_type, used) for _ in range(task.n_keys)]
    values = [[_draw(rng, task.value_type, used) for _ in range(task.n_values)] for _ in keys]
    needles = [_needle(task, key, value) for key, own in zip(keys, values, strict=True) for value in own]
    rng.shuffle(needles)
    queried = rng.sample(range(task.n_keys), task.n_queries)
    query_keys = [keys[position] for position in queried]
    query = ", ".join(query_keys[:-1]) + ", and " + query_keys[-1] if len(query_keys) > 1 else query_keys[0]
    references = tuple(value for position in queried for value in values[position])
    question, answer_prefix = task.question.format(query=query), task.answer_prefix.format(query=query)

    # Among the sentences of a text.
    if task.haystack == "essay":
        if haystack is None:
            raise ValueError("this task hides its needles in prose: a haystack is needed")
        depths = sorted(rng.sample(DEPTHS, len(needles)))

        def build(size: int) -> PromptDraft:
            body = _among(haystack.first_words(size), needles, depths)
            return PromptDraft(
                task.context(body),
                question,
                answer_prefix,
                references,
                facts={"words": size, "depths": depths},
            )

        return [PromptRecipe(build, minimum=1, unit_tokens=1.3)]

    # Among lines of noise, or among needles that nobody asks for.
    others = random.Random(f"{label}/distractors")
    distractors: list[str] = []

    def build_lines(size: int) -> PromptDraft:
        while task.haystack == "needle" and len(distractors) < size:
            distractors.append(
                _needle(task, _draw(others, task.key_type, used), _draw(others, task.value_type, used))
            )
        lines = [NOISE] * size if task.haystack == "noise" else distractors[:size]
        places = sorted(random.Random(f"{label}/{size}").sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return PromptDraft(
            task.context("\n".join(lines)), question, answer_prefix, references, facts={"lines": size}
        )

    return [
        PromptRecipe(build_lines, minimum=len(needles), unit_tokens=25 if task.key_type == "words" else 90)
    ]


def variable_tracking(task: RulerTask, label: str, example_lines: int) -> list[PromptRecipe]:
    """A chain of five assignments among noise, after one worked example.

    Args:
        task: texts.
        label: seeds this sample.
        example_lines: noise sentences in the example; see `example_lines`.
    """
    chain = _draw_chain(random.Random(label), n_letters=5)
    question = task.question.format(query=chain.value)
    answer_prefix = task.answer_prefix.format(query=chain.value)

    def recipe(example: str, note: str) -> PromptRecipe:
        def build(size: int) -> PromptDraft:
            body = _tracked(random.Random(f"{label}/{size}"), chain, size)
            context = example + task.context(body)
            return PromptDraft(context, question, answer_prefix, chain.names, facts={"lines": size})

        return PromptRecipe(build, minimum=5, unit_tokens=25, note=note)

    return [
        recipe(tracking_example(task, f"{label}/example", example_lines), ""),
        recipe(tracking_example(task, f"{label}/example", 5), "in-context example cut to 5 noise sentences"),
        recipe("", "no in-context example"),
    ]


def tracking_example(task: RulerTask, label: str, size: int) -> str:
    """The worked example of vt: three-letter names among `size` noise sentences.

    Two spaces stand before the answer, as in the original.
    """
    rng = random.Random(label)
    chain = _draw_chain(rng, n_letters=3)
    prompt = task.context(_tracked(rng, chain, size)) + task.question + task.answer_prefix
    return prompt.replace("{query}", chain.value) + " " + " ".join(chain.names) + "\n\n"


def example_lines(task: RulerTask, label: str, counter: PromptTokenCounter) -> int:
    """Noise sentences of vt's worked example: as many as 500 tokens hold, 5 at least."""

    def build(size: int) -> PromptDraft:
        return PromptDraft(tracking_example(task, label, size), "", "", (), facts={"lines": size})

    fitted = fit_prompt([PromptRecipe(build, minimum=5, unit_tokens=25)], counter, _EXAMPLE_TOKENS)
    return 5 if isinstance(fitted, int) else int(fitted.draft.facts["lines"])


def _draw(rng: random.Random, kind: str, used: set[str]) -> str:
    """A number of seven digits, an adjective-noun, or a version-4 uuid, none of those already `used`."""
    lists = word_lists() if kind == "words" else None
    make: Callable[[], str] = {
        "numbers": lambda: str(rng.randint(1_000_000, 9_999_999)),
        "words": lambda: f"{rng.choice(lists.adjectives)}-{rng.choice(lists.nouns)}" if lists else "",
        "uuids": lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }[kind]
    while (drawn := make()) in used:
        pass
    used.add(drawn)
    return drawn


def _needle(task: RulerTask, key: str, value: str) -> str:
    return NEEDLE.format(type=task.value_type, key=key, value=value)


def _among(sentences: list[str], needles: list[str], depths: list[int]) -> str:
    """Needles before the sentences at `depths` percent.

    Parts that stay empty still get their space, as in the original.
    """
    places = [int(len(sentences) * (depth / 100)) for depth in depths]
    parts, last = [], 0
    for place, needle in zip(places, needles, strict=True):
        parts += [" ".join(sentences[last:place]), needle]
        last = place
    return " ".join([*parts, " ".join(sentences[last:])])


def _draw_chain(rng: random.Random, n_letters: int) -> AssignmentChain:
    """Five variables with names of so many letters."""
    value = str(rng.randrange(10_000, 99_999))
    names: dict[str, None] = {}
    while len(names) < 5:
        names["".join(rng.choices(string.ascii_uppercase, k=n_letters))] = None
    return AssignmentChain(value, tuple(names))


def _tracked(rng: random.Random, chain: AssignmentChain, size: int) -> str:
    """`size` noise sentences with the chain's assignments between them, in order, one a line."""
    first = f"VAR {chain.names[0]} = {chain.value}"
    assignments = [first, *(f"VAR {name} = VAR {before} " for before, name in pairwise(chain.names))]
    places = sorted(rng.sample(range(size), len(assignments)))
    lines = [NOISE] * size
    for shift, (place, assignment) in enumerate(zip(places, assignments, strict=True)):
        lines.insert(place + shift, assignment)
    return "\n".join(lines)
