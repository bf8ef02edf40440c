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

from benchmarks.haystack import Haystack
from benchmarks.ruler_fit import Draft, Meter, Recipe, fit
from benchmarks.ruler_prompts import NEEDLE, NOISE, RulerTask
from benchmarks.ruler_words import word_lists

DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Percent; the 40 places for needles in prose."""

_EXAMPLE_TOKENS = 500  # the official bound on vt's worked example


def niah(task: RulerTask, label: str, haystack: Haystack | None) -> list[Recipe]:
    """Needles in noise, in prose, or among other needles.

    Args:
        task: sizes and texts.
        label: seeds this sample.
        haystack: the prose; needed by tasks whose haystack is "essay" only.
    """
    rng = random.Random(label)
    used: set[str] = set()
    keys = [_draw(rng, task.key_type, used) for _ in range(task.n_keys)]
    values = [[_draw(rng, task.value_type, used) for _ in range(task.n_values)] for _ in keys]
    needles = [_needle(task, key, value) for key, own in zip(keys, values, strict=True) for value in own]
    rng.shuffle(needles)
    queried = rng.sample(range(task.n_keys), task.n_queries)
    asked = [keys[position] for position in queried]
    query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
    references = tuple(value for position in queried for value in values[position])
    question, answer_prefix = task.question.format(query=query), task.answer_prefix.format(query=query)

    if task.haystack == "essay":
        if haystack is None:
            raise ValueError("this task hides its needles in prose: a haystack is needed")
        depths = sorted(rng.sample(DEPTHS, len(needles)))

        def build(size: int) -> Draft:
            body = _among(haystack.first_words(size), needles, depths)
            return Draft(
                task.context(body),
                question,
                answer_prefix,
                references,
                facts={"words": size, "depths": depths},
            )

        return [Recipe(build, minimum=1, unit_tokens=1.3)]

    others = random.Random(f"{label}/distractors")
    distractors: list[str] = []

    def build_lines(size: int) -> Draft:
        while task.haystack == "needle" and len(distractors) < size:
            distractors.append(
                _needle(task, _draw(others, task.key_type, used), _draw(others, task.value_type, used))
            )
        lines = [NOISE] * size if task.haystack == "noise" else distractors[:size]
        places = sorted(random.Random(f"{label}/{size}").sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return Draft(
            task.context("\n".join(lines)), question, answer_prefix, references, facts={"lines": size}
        )

    return [Recipe(build_lines, minimum=len(needles), unit_tokens=25 if task.key_type == "words" else 90)]


def variable_tracking(task: RulerTask, label: str, example_lines: int) -> list[Recipe]:
    """A chain of five assignments among noise, after one worked example.

    Args:
        task: texts.
        label: seeds this sample.
        example_lines: noise sentences in the example; see `example_lines`.
    """
    rng = random.Random(label)
    value, names = _chain(rng, 5)
    question, answer_prefix = task.question.format(query=value), task.answer_prefix.format(query=value)

    def recipe(example: str, note: str) -> Recipe:
        def build(size: int) -> Draft:
            body = _tracked(random.Random(f"{label}/{size}"), value, names, size)
            return Draft(example + task.context(body), question, answer_prefix, names, facts={"lines": size})

        return Recipe(build, minimum=5, unit_tokens=25, note=note)

    return [
        recipe(tracking_example(task, f"{label}/example", example_lines), ""),
        recipe(tracking_example(task, f"{label}/example", 5), "in-context example cut to 5 noise sentences"),
        recipe("", "no in-context example"),
    ]


def tracking_example(task: RulerTask, label: str, size: int) -> str:
    """The worked example of vt: three-letter names among `size` noise sentences; two spaces stand before the answer, as in the original."""
    rng = random.Random(label)
    value, names = _chain(rng, 3)
    prompt = task.context(_tracked(rng, value, names, size)) + task.question + task.answer_prefix
    return prompt.replace("{query}", value) + " " + " ".join(names) + "\n\n"


def example_lines(task: RulerTask, label: str, meter: Meter) -> int:
    """Noise sentences of vt's worked example: as many as 500 tokens hold, 5 at least."""

    def build(size: int) -> Draft:
        return Draft(tracking_example(task, label, size), "", "", (), facts={"lines": size})

    fitted = fit([Recipe(build, minimum=5, unit_tokens=25)], meter, _EXAMPLE_TOKENS)
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
    """Needles before the sentences at `depths` percent; parts that stay empty still get their space, as in the original."""
    places = [int(len(sentences) * (depth / 100)) for depth in depths]
    parts, last = [], 0
    for place, needle in zip(places, needles, strict=True):
        parts += [" ".join(sentences[last:place]), needle]
        last = place
    return " ".join([*parts, " ".join(sentences[last:])])


def _chain(rng: random.Random, n_letters: int) -> tuple[str, tuple[str, ...]]:
    value = str(rng.randrange(10_000, 99_999))
    names: dict[str, None] = {}
    while len(names) < 5:
        names["".join(rng.choices(string.ascii_uppercase, k=n_letters))] = None
    return value, tuple(names)


def _tracked(rng: random.Random, value: str, names: tuple[str, ...], size: int) -> str:
    """`size` noise sentences with the chain's assignments between them, in order, one a line."""
    chain = [f"VAR {names[0]} = {value}"] + [
        f"VAR {name} = VAR {before} " for before, name in pairwise(names)
    ]
    lines = [NOISE] * size
    for shift, (place, assignment) in enumerate(
        zip(sorted(rng.sample(range(size), len(chain))), chain, strict=True)
    ):
        lines.insert(place + shift, assignment)
    return "\n".join(lines)
