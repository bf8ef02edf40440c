"""Recipes for RULER's five kinds of synthetic task: what one sample hides, and how to build its prompt at any size.

Every draw comes from a generator seeded by run, task, length and row, so a sample never depends on the samples before it.

Source: NVIDIA/RULER scripts/data/synthetic/{niah,variable_tracking,common_words_extraction,freq_words_extraction,qa}.py at c3f5e3b;
    Hsieh et al. 2024, arXiv 2404.06654.
Differs: order of words and documents is drawn for every sample (the official shuffle repeats one permutation within a run); keys and
    values of a sample are distinct; the noise sentences of vt's example are counted once per tokenizer, its names and places are
    drawn per sample.
"""

from __future__ import annotations

import importlib.util
import math
import random
import string
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.haystack import Haystack
from benchmarks.ruler_fit import Draft, Recipe
from benchmarks.ruler_prompts import NEEDLE, NOISE, RulerTask
from benchmarks.ruler_questions import Question, QuestionSet

DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Percent; the 40 places for needles in prose."""

FWE_NORM = math.pi**2 / 6
"""zeta(2): the word of rank k makes up k^-2 / zeta(2) of a coded text."""

LONG = 4096
"""Tokens; from this length on, common words are repeated more often."""


class WordLists(NamedTuple):
    """The lists that keys and counted words are drawn from; each sorted, without repeats."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    all: tuple[str, ...]


@lru_cache(maxsize=1)
def word_lists() -> WordLists:
    """Adjectives, nouns, and both with the verbs, read from the text files of the package wonderwords (which is not imported).

    Raises:
        ValueError: the package is not installed.
    """
    found = importlib.util.find_spec("wonderwords")
    if found is None or found.origin is None:
        raise ValueError("ruler draws its words from the package wonderwords, which is not installed; install wonderwords 3")
    folder = Path(found.origin).parent / "assets"
    lists = [(folder / f"{kind}list.txt").read_text(encoding="utf-8").splitlines() for kind in ("adjective", "noun", "verb")]
    adjectives, nouns, verbs = ({word.rstrip() for word in words} for words in lists)
    return WordLists(tuple(sorted(adjectives)), tuple(sorted(nouns)), tuple(sorted(adjectives | nouns | verbs)))


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
            return Draft(task.context(body), question, answer_prefix, references, facts={"words": size, "depths": depths})

        return [Recipe(build, minimum=1, unit_tokens=1.3)]

    others = random.Random(f"{label}/distractors")
    distractors: list[str] = []

    def build_lines(size: int) -> Draft:
        while task.haystack == "needle" and len(distractors) < size:
            distractors.append(_needle(task, _draw(others, task.key_type, used), _draw(others, task.value_type, used)))
        lines = [NOISE] * size if task.haystack == "noise" else distractors[:size]
        places = sorted(random.Random(f"{label}/{size}").sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return Draft(task.context("\n".join(lines)), question, answer_prefix, references, facts={"lines": size})

    return [Recipe(build_lines, minimum=len(needles), unit_tokens=25 if task.key_type == "words" else 90)]


def variable_tracking(task: RulerTask, label: str, example_lines: int) -> list[Recipe]:
    """A chain of five assignments among noise, after one worked example.

    Args:
        task: texts.
        label: seeds this sample.
        example_lines: noise sentences in the example; see `tracking_example`.
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
    """vt's worked example: three-letter names among `size` noise sentences; two spaces stand before the answer, as in the original."""
    rng = random.Random(label)
    value, names = _chain(rng, 3)
    prompt = task.context(_tracked(rng, value, names, size)) + task.question + task.answer_prefix
    return prompt.replace("{query}", value) + " " + " ".join(names) + "\n\n"


def common_words(task: RulerTask, label: str, length: int) -> list[Recipe]:
    """A numbered list in which ten words come more often than the others, after one worked example.

    Where the official numbers of repeats (30 and 3 from 4096 tokens on, 6 and 1 below) do not fit, smaller ones are tried.
    """
    vocabulary = list(word_lists().all)
    random.Random(label).shuffle(vocabulary)

    def numbered(size: int, common: int, uncommon: int, words: list[str], seed: str) -> str:
        listed = words[:10] * common + words[10:size] * uncommon
        random.Random(seed).shuffle(listed)
        return task.context(" ".join(f"{position}. {word}" for position, word in enumerate(listed, start=1)))

    def example(size: int, common: int, uncommon: int) -> str:
        words = vocabulary[::-1][:size]
        answer = " ".join(f"{position}. {word}" for position, word in enumerate(words[:10], start=1))
        return f"{numbered(size, common, uncommon, words, f'{label}/example')}{task.question}{task.answer_prefix} {answer}\n"

    def recipe(common: int, uncommon: int, shown: str, minimum: int, note: str) -> Recipe:
        def build(size: int) -> Draft:
            context = shown + numbered(size, common, uncommon, vocabulary, f"{label}/{size}")
            facts = {"distinct_words": size, "repeats": [common, uncommon]}
            return Draft(context, task.question, task.answer_prefix, tuple(vocabulary[:10]), facts=facts)

        return Recipe(build, minimum, unit_tokens=6 * uncommon, maximum=len(vocabulary), note=note)

    short = example(20, 3, 1)
    recipes = [
        recipe(6, 1, short, 11, "repeats of the lengths below 4096" if length >= LONG else ""),
        recipe(3, 1, short, 15, "common words repeated 3 times"),
        recipe(6, 1, "", 15, "no in-context example"),
        recipe(3, 1, "", 11, "no in-context example, common words repeated 3 times"),
    ]
    return [recipe(30, 3, example(40, 10, 3), 11, ""), *recipes] if length >= LONG else recipes


def frequent_words(task: RulerTask, label: str, length: int) -> list[Recipe]:
    """Coded words whose counts fall with the square of their rank; the first is noise ("..."), ranks two to four are asked for."""
    rng = random.Random(label)
    n_words = max((length - task.max_new_tokens) // 50, 4)
    drawn: dict[str, None] = {}
    while len(drawn) < n_words:
        drawn["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    vocabulary = ["...", *list(drawn)[1:]]

    def build(size: int) -> Draft:
        listed = [word for rank, word in enumerate(vocabulary, start=1) for _ in range(int(size / rank**2 / FWE_NORM))]
        random.Random(f"{label}/{size}").shuffle(listed)
        facts = {"coded_words": len(listed), "vocabulary": n_words}
        return Draft(task.context(" ".join(listed)), task.question, task.answer_prefix, tuple(vocabulary[1:4]), facts=facts)

    return [Recipe(build, minimum=53, unit_tokens=2.2)]  # below 53, ranks 4 and 5 may come equally often


def question_answering(task: RulerTask, label: str, question: Question, found: QuestionSet) -> list[Recipe]:
    """The documents that a question needs, those related to it, then random others, shuffled."""
    rng = random.Random(label)
    order = [*question.needed, *rng.sample(question.related, len(question.related))]
    official = len(order) if found.together else 1
    more = _others(rng, len(found.documents), set(order))

    def build(size: int) -> Draft:
        while len(order) < size:
            order.append(next(more))
        chosen = order[:size]
        random.Random(f"{label}/{size}").shuffle(chosen)
        texts, evidence, begin = [], [], len(task.head)
        for number, document in enumerate(chosen, start=1):
            title = f"Document {number}:\n"
            begin += len(title)
            evidence += [(begin + start, begin + end) for own, start, end in question.evidence if own == document]
            texts.append(title + found.documents[document])
            begin += len(found.documents[document]) + 2
        facts: dict[str, object] = {"documents": size}
        if size < official:
            facts["note"] = f"{size} documents instead of the question's {official}"
        return Draft(
            task.context("\n\n".join(texts)),
            task.question.replace("{query}", question.text),
            task.answer_prefix,
            question.answers,
            tuple(sorted(set(evidence))),
            facts,
        )

    return [Recipe(build, minimum=len(question.needed), unit_tokens=150)]


def _others(rng: random.Random, n_documents: int, seen: set[int]) -> Iterator[int]:
    """Documents in random order, those in `seen` only after all others, and so on round and round."""
    while True:
        while len(seen) < n_documents:
            document = rng.randrange(n_documents)
            if document not in seen:
                seen.add(document)
                yield document
        seen = set()


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
    chain = [f"VAR {names[0]} = {value}"] + [f"VAR {name} = VAR {before} " for before, name in zip(names, names[1:], strict=False)]
    lines = [NOISE] * size
    for shift, (place, assignment) in enumerate(zip(sorted(rng.sample(range(size), len(chain))), chain, strict=True)):
        lines.insert(place + shift, assignment)
    return "\n".join(lines)
