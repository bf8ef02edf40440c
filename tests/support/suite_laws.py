"""What holds for every suite: gold answers, empty text, any text, ids, order, the prompt in three parts."""

import math
import random
import string
from collections.abc import Callable, Sequence

from benchmarks.base import Benchmark, Sample
from tests.support.word_tokenizer import WordTokenizer

NASTY = (
    "",
    "\n\n",
    "\n  \n answer",
    " . ",
    "...",
    "“quotes” ‘and’ «more» \u2028\u0085",
    "0", "1.5", "-3 / 0", "99999999999999999999999999", "1e400", "٣٤", "²", "½", "12%", "1_000",
    "yes no maybe none one",
    "{", "}", "{'a': ", "{'a': [1]}", "[" * 300,
    "\\boxed{", "\\boxed{}", "\\boxed{\\frac{1}{", "\\frac", "\\sqrt",
    "```python\ndef f():\n    pass\n```", "```",
    "A", "(B)", "answer is", "The answer is: ", "<mask-0>", "None", "null", "\ud800",
    "word " * 2000,
    "nostop" * 2000,
)  # fmt: skip


def check(
    benchmark: Benchmark, samples: Sequence[Sample], gold: Callable[[Sample], str], exempt: Sequence[str] = ()
) -> None:
    """The laws of scoring; `exempt` names metrics, never the headline, that a gold answer need not fulfil."""
    assert samples and len({sample.id for sample in samples}) == len(samples)
    rng = random.Random(0)
    random_texts = [
        "".join(rng.choices(string.printable + "“”é中", k=rng.randrange(1, 200))) for _ in range(20)
    ]
    for sample in samples:
        scores = benchmark.score(sample, gold(sample))
        assert next(iter(scores)) == benchmark.metrics[sample.task], (sample.id, scores)
        wrong = {
            name: value
            for name, value in scores.items()
            if not math.isclose(value, 1.0) and name not in exempt
        }
        assert not wrong, (sample.id, gold(sample), wrong)
        assert set(benchmark.score(sample, "").values()) == {0.0}, sample.id
        known = benchmark.reference_answer(sample)
        assert isinstance(known, str) and (
            not known or math.isclose(next(iter(benchmark.score(sample, known).values())), 1.0)
        ), sample.id
        texts = [
            *NASTY,
            *random_texts,
            gold(sample) * 2,
            gold(sample).upper(),
            "\n" + gold(sample),
            sample.question,
        ]
        for text in texts:
            scores = benchmark.score(sample, text)
            assert list(scores) == list(benchmark.score(sample, gold(sample))) and scores == benchmark.score(
                sample, text
            )
            assert all(0.0 <= value <= 1.0 and isinstance(value, float) for value in scores.values()), (
                sample.id,
                text[:50],
                scores,
            )
        for start, end in sample.evidence:
            assert 0 <= start < end <= len(sample.context)
        assert sample.context and sample.max_new_tokens >= 1


def take(benchmark: Benchmark, limit: int | None = None, window: int = 10**6) -> list[Sample]:
    """The samples, made twice; a limit gives a prefix of each task."""
    samples = list(benchmark.samples(WordTokenizer(), window, limit))
    assert samples == list(benchmark.samples(WordTokenizer(), window, limit))
    return samples


def prompt(sample: Sample) -> str:
    """What the model reads."""
    return sample.context + sample.question + sample.answer_prefix
