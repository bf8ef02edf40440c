"""From an answer to its record: the key that says what was asked, the score, and what was measured."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean as mean
from typing import Any

from benchmarks.base import Sample
from longpress.analysis.records import Record, record_key
from longpress.evaluation.config import Settings
from longpress.evaluation.environment import redacted, without_secrets
from longpress.evaluation.options import RunOptions
from longpress.evaluation.prompt_measure import PromptMeasure
from longpress.models.loading import KnownModel, LoadedModel, added_ends
from longpress.pipeline.options import PipelineOptions
from longpress.pipeline.results import Failure, Result
from longpress.pipeline.variants import Variant

COUNTING = ("tasks", "samples_per_task")
"""Options of a benchmark that choose samples without changing any: tables do not keep their records apart."""


class RecordBuilder:
    """The keys and records of a run's answers.

    Attributes:
        failed: answers that failed so far; their records say why, and the next run tries them again.
    """

    def __init__(self, settings: Settings, model: KnownModel | LoadedModel) -> None:
        """Of the answers of `model` in a run with these settings.

        Raises:
            ValueError: an end token that the model's tokenizer does not have.
        """
        self.failed = 0
        self._settings, self._model = settings, model
        self._measure = PromptMeasure(model.tokenizer, settings.options)
        named = set(model.named_ends)
        self._ends = [
            token for token in added_ends(model.tokenizer, settings.options.ends()) if token not in named
        ]

    def keys(self, sample: Sample) -> list[str]:
        """The key of a sample's record under each variant: a hash of everything that can change an answer.

        Raises:
            ValueError: the model's chat template cannot be used.
        """
        model, benchmark, options = self._model, self._settings.benchmark, self._settings.options
        what_is_asked = {
            "model": [model.name, model.revision, model.dtype],
            "benchmark": [benchmark.name, benchmark.version, sample.task, sample.id],
            "prompt": self.prompt_hash(sample),
            "references": sample.references,
            "query_aware": options.query_aware,
        }
        if generation := generation_parameters(options):  # greedy answers keep the keys of the first records
            what_is_asked["generation"] = generation
        if sample.draw is not None:
            what_is_asked["draw"] = list(sample.draw)
        if options.compress_every is not None:  # else nothing, as in the keys of the first records
            what_is_asked["prefill"] = prefill_name(options)
        if self._ends:
            what_is_asked["ends"] = sorted(self._ends)
        return [
            record_key({**what_is_asked, "press": key_of_variant(line.variant)})
            for line in self._settings.variants
        ]

    def prompt_hash(self, sample: Sample) -> str:
        """Content hash of everything the model reads, and of when its answer ends."""
        limits = [sample.max_new_tokens, sample.min_new_tokens, *sample.stop, sample.chat_template]
        beyond = self._measure.prompt(sample.chat_template).beyond_first(sample.context, sample.question)
        text = json.dumps(
            [sample.context, sample.question, sample.answer_prefix, *limits, *([beyond] if beyond else [])]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def described(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What stands around the prompts of samples, and what ends their answers, for people to read."""
        tokenizer, ends = self._model.tokenizer, {*self._model.named_ends, *self._ends}
        prompts = {
            "chat" if chat_template else "bare": self._measure.prompt(chat_template).described()
            for chat_template in sorted({sample.chat_template for sample in samples})
        }
        return {
            **prompts,
            "date": self._settings.options.date,
            "end_tokens": tokenizer.convert_ids_to_tokens(sorted(ends)),
        }

    def record(self, sample: Sample, variant: int, result: Result | Failure, key: str) -> Record:
        """Score an answer and make its record; a failure is counted, and the first is told on stderr.

        Args:
            sample: that was asked.
            variant: its number, in the order of the table.
            result: the answer, with what was measured.
            key: of the record.
        """
        outcome = scored(self._settings, sample, result)
        if isinstance(outcome, Exception):
            self.failed += 1
            if self.failed == 1:
                label = self._settings.variants[variant].label
                why = f"{type(outcome).__name__}: {redacted(str(outcome))}"
                print(f"failed: {sample.id} under {label}: {why}", file=sys.stderr)
        return self._record(sample, variant, result, key, outcome)

    def _record(
        self,
        sample: Sample,
        number: int,
        result: Result | Failure,
        key: str,
        outcome: Mapping[str, float] | Exception,
    ) -> Record:
        settings, model, benchmark = self._settings, self._model, self._settings.benchmark
        label, variant = settings.variants[number]
        scores, error = ({}, outcome) if isinstance(outcome, Exception) else (dict(outcome), None)
        metric = next(iter(scores), "")  # none where the suite keeps its references to itself
        benchmark_options: dict[str, Any] = asdict(benchmark)  # type: ignore[call-overload]
        return Record(
            key=key,
            # what was asked
            model=model.name,
            revision=model.revision,
            dtype=model.dtype,
            benchmark=benchmark.name,
            benchmark_version=benchmark.version,
            task=sample.task,
            sample_id=sample.id,
            context_id=sample.context_id,
            prompt_hash=self.prompt_hash(sample),
            # under which variant
            press=label,
            press_parameters=variant.press.parameters(),
            **{"compression_ratio": None, **variant.budget.named()},  # type: ignore[arg-type]
            cache_bits=variant.cache_bits,
            query_aware=settings.options.query_aware,
            prefill=prefill_name(settings.options),
            # what was answered, and what it is worth
            prediction=result.answer.text,
            thought=result.answer.thought,
            thought_end=result.answer.thought_end,
            references=list(sample.references),
            metric=metric,
            score=scores.get(metric),
            scores=scores,
            weight=sample.weight,
            stop_reason=result.answer.stop_reason if error is None else "error",
            error=None if error is None else redacted("".join(traceback.format_exception(error))),
            # what was measured
            question_tokens=result.answer.question_tokens,
            new_tokens=len(result.answer.token_ids),
            thinking_tokens=result.answer.thinking_tokens,
            decode_seconds=result.answer.seconds,
            **measured(result, sample),
            # what the scorer and the tables want to know besides
            data=dict(sample.metadata),
            seed=settings.options.seed,
            generation_parameters=generation_parameters(settings.options),
            sampling_seed=None if sample.draw is None else sample.draw.seed,
            draw=None if sample.draw is None else sample.draw.number,
            benchmark_parameters=without_secrets(
                {name: value for name, value in benchmark_options.items() if name not in COUNTING}
            ),
        )


def key_of_variant(variant: Variant) -> list[Any]:
    """What a record's key says of a variant: press, parameters, budget, and the bits of a quantised cache.

    The budget is a bare number where it is a ratio, and where a field of the press sets it. Bits are left out
    where the cache is not quantised. So it was when the first records were written, which keep their keys.
    """
    press, budget = variant.press, variant.budget
    if budget.tokens is not None or budget.threshold is not None:
        amount: Any = budget.named()
    else:
        amount = press.compression_ratio if budget.is_fixed else budget.ratio
    bits = [] if variant.cache_bits is None else [{"cache_bits": variant.cache_bits}]
    return [press.name, press.parameters(), amount, *bits]


def generation_parameters(options: RunOptions) -> dict[str, Any]:
    """How answers are generated, where not greedily and as the suite says.

    Options that have their default, or change no answer, are left out.
    """
    names = ["thinking", "max_thinking_tokens", "max_new_tokens", "system_prompt"]
    if not options.is_greedy:
        names = ["temperature", "top_p", "top_k", "min_p", *names]
    given = {}
    for name in names:
        value, default = getattr(options, name), getattr(RunOptions, name)
        if value != default:
            given[name] = float(value) if isinstance(default, float) else value
    return given


def prefill_name(options: PipelineOptions) -> str:
    """How contexts are read, as records say it: "shared"; "chunked/N": compressed after every N tokens."""
    return "shared" if options.compress_every is None else f"chunked/{options.compress_every}"


def scored(settings: Settings, sample: Sample, result: Result | Failure) -> dict[str, float] | Exception:
    """Metrics of an answer, or why there are none: it could not be written, or the scorer gave no score."""
    if result.error is not None:
        return result.error
    try:
        scores = settings.benchmark.score(sample, result.answer.text)
        check_scores(scores)
    except Exception as error:
        return error
    return scores


def check_scores(scores: Mapping[str, float]) -> None:
    """Refuse what is no score.

    Raises:
        ValueError: a score is not a number in [0, 1].
    """
    for metric, score in scores.items():
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ValueError(f"the scorer gave {metric}={score!r}, which does not lie in [0, 1]")


def measured(result: Result | Failure, sample: Sample) -> dict[str, Any]:
    """Fields of a record that say what a variant kept and what it cost; zeros where it failed before that."""
    if isinstance(result, Failure):
        numbers = ("kept_fraction", "cache_bytes", "full_cache_bytes", "context_tokens")
        seconds = ("prefill_seconds", "observe_seconds", "compress_seconds")
        return {**dict.fromkeys(numbers, 0), **dict.fromkeys(seconds, 0.0), "kept_entries": []}

    kept, sizes = result.context, result.answer.cache_bytes
    knows_evidence = sample.evidence and kept.evidence_kept
    return {
        "kept_fraction": kept.kept_fraction,
        # per layer: one number where every head keeps as many, else a list
        "kept_entries": [heads[0] if len(set(heads)) == 1 else heads for heads in kept.entries()],
        "cache_bytes": kept.bytes,
        "full_cache_bytes": kept.full_bytes,
        "state_bytes": kept.state_bytes,
        "kept_fraction_with_state": kept.kept_fraction_with_state,
        "context_tokens": kept.tokens,
        "peak_entries": kept.full_entries if kept.peak_entries is None else kept.peak_entries,
        "truncated": sample.truncated or result.truncated,
        "joint_tokens": result.joint_tokens,
        "outgrew_rope": result.answer.outgrew_rope,
        "prefill_seconds": result.prefill_seconds,
        "observe_seconds": result.observe_seconds,
        "compress_seconds": kept.seconds,
        "evidence_kept": kept.evidence_kept[result.question] if knows_evidence else None,
        # while the answer was written
        "final_cache_bytes": sizes[-1] if sizes else None,
        "peak_cache_bytes": max(sizes, default=None),
        "mean_cache_bytes": mean(sizes) if sizes else None,
        **result.answer.fidelity,
    }
