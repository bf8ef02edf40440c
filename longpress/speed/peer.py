"""The same rows with kvpress, in an environment of its own: `python -m longpress.speed.peer IN OUT`.

One call of its pipeline per row and variant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kvpress
from transformers import pipeline

from longpress.models.host_memory import peak_memory_bytes
from longpress.pipeline.clock import now
from longpress.speed.sweep import load

MAKE: dict[str, Callable[[float], Any]] = {
    "none": lambda ratio: None,
    "knorm": lambda ratio: kvpress.KnormPress(ratio),
    "keydiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "streaming_llm": lambda ratio: kvpress.StreamingLLMPress(ratio),
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio),
    "tova": lambda ratio: kvpress.TOVAPress(ratio),
    "expected_attention": lambda ratio: kvpress.ExpectedAttentionPress(ratio),
    "pyramidkv": lambda ratio: kvpress.PyramidKVPress(ratio),
    "lagkv": lambda ratio: kvpress.LagKVPress(ratio),
    "leverage": lambda ratio: kvpress.LeverageScorePress(ratio),
    "adakv": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
}


def main() -> None:
    """Load the model, answer, write seconds and answers per row and variant."""
    source, target = map(Path, sys.argv[1:])
    subject, rows, points = load(source)
    loaded = subject.load()
    pipe = pipeline("kv-press-text-generation", model=loaded.model, tokenizer=loaded.tokenizer)

    pipe(rows[0].context[:2000], question="Why?", max_new_tokens=2)
    seconds, answers = [], []
    for row in rows:
        options = {
            "question": row.question,
            "answer_prefix": row.answer_prefix,
            "max_new_tokens": row.max_new_tokens,
        }
        for point in points:
            started = now()
            answers.append(pipe(row.context, press=MAKE[point.press](point.ratio), **options)["answer"])
            seconds.append(now() - started)
    n = len(points)
    measured = {
        "seconds": [seconds[start : start + n] for start in range(0, len(seconds), n)],
        "answers": [answers[start : start + n] for start in range(0, len(answers), n)],
        "peak_bytes": peak_memory_bytes(),
        "kvpress": version("kvpress"),
        "transformers": version("transformers"),
    }
    target.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
