"""The workload with kvpress: `python -m longpress.speed.peer IN OUT`, in an environment of kvpress's own.

One call of its pipeline per row and variant. Of our packages it needs the files, and not that they are
installed.
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
from longpress.speed.workload import Workload

PRESSES: dict[str, Callable[[float], Any]] = {
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
"""Our name of a press -> kvpress's, made with a ratio."""


def main() -> None:
    """Load the model, answer, write seconds and answers per row and variant."""
    source, target = map(Path, sys.argv[1:])
    workload = Workload.read(source)
    loaded = workload.model.load()
    pipe = pipeline("kv-press-text-generation", model=loaded.model, tokenizer=loaded.tokenizer)
    # The first calls allocate and choose kernels.
    pipe(workload.rows[0].context[:2000], question="Why?", max_new_tokens=2)

    seconds: list[list[float]] = []
    answers: list[list[str]] = []
    for row in workload.rows:
        options = {
            "question": row.question,
            "answer_prefix": row.answer_prefix,
            "max_new_tokens": row.max_new_tokens,
        }
        seconds.append([])
        answers.append([])
        for variant in workload.variants:
            started = now()
            press = PRESSES[variant.press](variant.ratio)
            answers[-1].append(pipe(row.context, press=press, **options)["answer"])
            seconds[-1].append(now() - started)
    measured = {
        "seconds": seconds,
        "answers": answers,
        "peak_bytes": peak_memory_bytes(),
        "kvpress": version("kvpress"),
        "transformers": version("transformers"),
    }
    target.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
