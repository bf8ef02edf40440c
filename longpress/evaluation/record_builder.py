"""From an answer to its record: the key that says what was asked, the score, and what was measured."""

from __future__ import annotations

import hashlib
import json
import math
import traceback
from dataclasses import asdict
from statistics import fmean as mean
from typing import Any

from benchmarks.base import Sample
from longpress.analysis.records import Record, record_key
from longpress.evaluation.config import Settings
from longpress.evaluation.environment import redacted, without_secrets
from longpress.models.loading import KnownModel, LoadedModel
from longpress.pipeline.prefill import Variant
from longpress.pipeline.results import Failure, Result

COUNTING = ("tasks", "samples_per_task")
"""Options of a benchmark that choose samples without changing any of them: tables do not keep their records apart."""


def keys_of(settings: Settings, model: KnownModel | LoadedModel, sample: Sample) -> list[str]:
    """The key of the sample's record under each variant."""
    benchmark = settings.benchmark
    shared = {
        "model": [model.name, model.revision, model.dtype],
        "benchmark": [benchmark.name, benchmark.version, sample.task, sample.id],
        "prompt": prompt_hash(sample),
        "references": sample.references,
        "query_aware": settings.query_aware,
    }
    if settings.prefill != "shared":
        shared["prefill"] = prefill_name(settings)
    presses = (
        [one.press.name, one.press.parameters(), *_budget_key(one), *_bits_key(one)]
        for _, one in settings.variants
    )
    return [record_key({**shared, "press": press}) for press in presses]


def scored(settings: Settings, sample: Sample, result: Result | Failure) -> dict[str, float] | Exception:
    """Metrics of an answer, or why there are none: it could not be written, or the scorer raised or gave no score."""
    if result.error is not None:
        return result.error
    try:
        scores = settings.benchmark.score(sample, result.answer.text)
        check_scores(scores)
    except Exception as error:
        return error
    return scores


def record_of(
    settings: Settings,
    model: KnownModel | LoadedModel,
    sample: Sample,
    at: int,
    result: Result | Failure,
    key: str,
    outcome: dict[str, float] | Exception,
) -> Record:
    """The record of variant `at`, with what `scored` says of its answer."""
    label, variant = settings.variants[at]
    scores, error = ({}, outcome) if isinstance(outcome, Exception) else (outcome, None)
    metric = next(iter(scores), "")  # none where the suite keeps its references to itself
    return Record(
        key=key,
        model=model.name,
        revision=model.revision,
        dtype=model.dtype,
        benchmark=settings.benchmark.name,
        benchmark_version=settings.benchmark.version,
        task=sample.task,
        sample_id=sample.id,
        context_id=sample.context_id,
        press=label,
        press_parameters=variant.press.parameters(),
        **{"compression_ratio": None, **variant.budget},  # type: ignore[arg-type]
        cache_bits=variant.cache_bits,
        query_aware=settings.query_aware,
        prefill=prefill_name(settings),
        metric=metric,
        score=scores.get(metric),
        scores=scores,
        weight=sample.weight,
        prediction=result.answer.text,
        references=list(sample.references),
        question_tokens=result.answer.question_tokens,
        new_tokens=len(result.answer.token_ids),
        stop_reason=result.answer.stop_reason if error is None else "error",
        error=None if error is None else redacted("".join(traceback.format_exception(error))),
        decode_seconds=result.answer.seconds,
        prompt_hash=prompt_hash(sample),
        **measured(result, sample),
        data=dict(sample.metadata),
        seed=settings.seed,
        benchmark_parameters=without_secrets(
            {key: value for key, value in asdict(settings.benchmark).items() if key not in COUNTING}  # type: ignore[call-overload]
        ),
    )


def measured(result: Result | Failure, sample: Sample) -> dict[str, Any]:
    """Fields of a record that say what a variant kept and what it cost; nothing, where it failed before it kept anything."""
    if isinstance(result, Failure):
        numbers = ("kept_fraction", "cache_bytes", "full_cache_bytes", "context_tokens")
        seconds = ("prefill_seconds", "observe_seconds", "compress_seconds")
        return {**dict.fromkeys(numbers, 0), **dict.fromkeys(seconds, 0.0), "kept_entries": []}
    kept, sizes = result.context, result.answer.cache_bytes
    return {
        "kept_fraction": kept.kept_fraction,
        "kept_entries": [heads[0] if len(set(heads)) == 1 else heads for heads in kept.entries()],
        "cache_bytes": kept.bytes,
        "full_cache_bytes": kept.full_bytes,
        "context_tokens": kept.tokens,
        "peak_entries": kept.full_entries if kept.peak_entries is None else kept.peak_entries,
        "truncated": sample.truncated or result.truncated,
        "prefill_seconds": result.prefill_seconds,
        "observe_seconds": result.observe_seconds,
        "compress_seconds": kept.seconds,
        "evidence_kept": kept.evidence_kept[result.question]
        if sample.evidence and kept.evidence_kept
        else None,
        "final_cache_bytes": sizes[-1] if sizes else None,
        "peak_cache_bytes": max(sizes, default=None),
        "mean_cache_bytes": mean(sizes) if sizes else None,
        **result.answer.fidelity,
    }


def _budget_key(variant: Variant) -> list[Any]:
    """What a record's key says of the budget: the ratio, or another budget by name."""
    if variant.budget_tokens is None and variant.threshold is None:
        return [variant.compression_ratio]
    return [variant.budget]


def _bits_key(variant: Variant) -> list[Any]:
    """What a record's key says of a quantised cache; nothing of one that is not, so that older records keep their keys."""
    return [] if variant.cache_bits is None else [{"cache_bits": variant.cache_bits}]


def prefill_name(settings: Settings) -> str:
    """How contexts are read, as records say it: "shared", or "chunked/N" with N tokens per chunk."""
    return (
        settings.prefill if settings.prefill == "shared" else f"{settings.prefill}/{settings.prefill_chunk}"
    )


def prompt_hash(sample: Sample) -> str:
    """Content hash of everything the model reads, and of when its answer ends."""
    limits = [sample.max_new_tokens, sample.min_new_tokens, *sample.stop, sample.chat_template]
    text = json.dumps([sample.context, sample.question, sample.answer_prefix, *limits])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_scores(scores: dict[str, float]) -> None:
    """Refuse what is no score.

    Raises:
        ValueError: a score is not a number in [0, 1].
    """
    for metric, score in scores.items():
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ValueError(f"the scorer gave {metric}={score!r}, which does not lie in [0, 1]")
