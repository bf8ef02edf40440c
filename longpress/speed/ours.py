"""The workload with longpress: `python -m longpress.speed.ours IN OUT`.

Reads rows and variants, and writes answers, seconds and bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longpress import Budget, CompressingPipeline, Question, Request, Variant
from longpress.catalogue import find, presses
from longpress.models.host_memory import peak_memory_bytes
from longpress.pipeline.clock import now
from longpress.pipeline.results import Failure, Result
from longpress.speed.workload import GridVariant, Row, Workload


def pipeline_variants(variants: Sequence[GridVariant]) -> list[Variant]:
    """Presses of the catalogue, with their default options."""
    catalogue = presses()
    return [
        Variant(find(variant.press, catalogue, "press").load()(), Budget(ratio=variant.ratio))
        for variant in variants
    ]


def sweep(pipe: CompressingPipeline, rows: Sequence[Row], variants: Sequence[GridVariant]) -> dict[str, Any]:
    """All variants on all rows, and where the seconds went.

    Returns:
        `seconds` of the whole; `prefill`, `observe`, `compress`, `decode` seconds; `answers[row][variant]`;
        `new_tokens` and `question_tokens`, summed over rows and variants; `context_tokens` per row.

    Raises:
        ValueError: an answer failed, e.g. because a row is longer than the model's window.
    """
    requests = [
        Request(
            row.context,
            [Question(row.question, row.answer_prefix, row.max_new_tokens)],
            pipeline_variants(variants),
        )
        for row in rows
    ]
    started = now()
    results = list(pipe.stream(requests))
    seconds = now() - started

    by_row = [[_answered(result) for result in of_row] for of_row in results]
    of_all_rows = [result for of_row in by_row for result in of_row]
    # A press observes a context once, whatever the number of its ratios.
    observed = [
        {result.variant.press.identity(): result.observe_seconds for result in of_row} for of_row in by_row
    ]
    return {
        "seconds": seconds,
        "prefill": sum(of_row[0].prefill_seconds for of_row in by_row),
        "observe": sum(sum(of_press.values()) for of_press in observed),
        "compress": sum(result.context.seconds for result in of_all_rows),
        "decode": sum(result.answer.seconds for result in of_all_rows),
        "answers": [[result.answer.text for result in of_row] for of_row in by_row],
        "new_tokens": sum(len(result.answer.token_ids) for result in of_all_rows),
        "question_tokens": sum(result.answer.question_tokens for result in of_all_rows),
        "context_tokens": [of_row[0].context.tokens for of_row in by_row],
    }


def _answered(result: Result | Failure) -> Result:
    """A result that is an answer.

    Raises:
        ValueError: it is none.
    """
    if isinstance(result, Failure) or result.error is not None:
        raise ValueError(f"{result.variant} failed: {result.error}")
    return result


def main() -> None:
    """Load the model, sweep, write."""
    source, target = map(Path, sys.argv[1:])
    workload = Workload.read(source)
    loaded = workload.model.load()
    pipe = CompressingPipeline(loaded.model, loaded.tokenizer, max_length=loaded.window)
    # The first calls allocate and choose kernels.
    pipe(workload.rows[0].context[:2000], question="Why?", max_new_tokens=2)
    measured = sweep(pipe, workload.rows, workload.variants)
    measured["peak_bytes"] = peak_memory_bytes()
    target.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
