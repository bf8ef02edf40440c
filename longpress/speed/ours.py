"""The sweep with longpress: `python -m longpress.speed.ours IN OUT` reads rows and variants, writes answers, seconds, bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longpress.catalogue import find, presses
from longpress.models.host_memory import peak_memory_bytes
from longpress import CompressingPipeline, Question, Request, Variant
from longpress.pipeline.clock import now
from longpress.speed.sweep import Point, Row, load


def variants(points: Sequence[Point]) -> list[Variant]:
    """Presses of the catalogue, with their default options."""
    catalogue = presses()
    return [Variant(find(point.press, catalogue, "press").load()(), point.ratio) for point in points]


def sweep(pipe: CompressingPipeline, rows: Sequence[Row], points: Sequence[Point]) -> dict[str, Any]:
    """All variants on all rows, and where the seconds went.

    Returns:
        `seconds` of the whole; `prefill`, `observe`, `compress`, `decode` seconds; `answers[row][point]`;
        `new_tokens` and `question_tokens`, summed over rows and variants; `context_tokens` per row.

    Raises:
        ValueError: an answer failed, e.g. because a row is longer than the model's window.
    """
    requests = [
        Request(
            row.context, [Question(row.question, row.answer_prefix, row.max_new_tokens)], variants(points)
        )
        for row in rows
    ]
    started = now()
    results = list(pipe.stream(requests))
    seconds = now() - started
    every = [result for of_row in results for result in of_row]
    for failed in (result for result in every if result.error is not None):
        raise ValueError(f"{failed.variant} failed: {failed.error}")
    observed = [
        {result.variant.press.identity(): result.observe_seconds for result in of_row} for of_row in results
    ]
    return {
        "seconds": seconds,
        "prefill": sum(of_row[0].prefill_seconds for of_row in results),
        "observe": sum(sum(of_press.values()) for of_press in observed),
        "compress": sum(result.context.seconds for result in every),
        "decode": sum(result.answer.seconds for result in every),
        "answers": [[result.answer.text for result in of_row] for of_row in results],
        "new_tokens": sum(len(result.answer.token_ids) for result in every),
        "question_tokens": sum(result.answer.question_tokens for result in every),
        "context_tokens": [of_row[0].context.tokens for of_row in results],
    }


def main() -> None:
    """Load the model, sweep, write."""
    source, target = map(Path, sys.argv[1:])
    subject, rows, points = load(source)
    loaded = subject.load()
    pipe = CompressingPipeline(loaded.model, loaded.tokenizer, window=loaded.window)
    pipe(rows[0].context[:2000], question="Why?", max_new_tokens=2)  # first calls allocate and choose kernels
    measured = sweep(pipe, rows, points)
    measured["peak_bytes"] = peak_memory_bytes()
    target.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
