"""Answers to contexts: a loaded model is asked what a plan lacks, and a record is written for each answer.

A run answers in its own process, or in each of several worker processes (see `workers.py`); both do it here.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.base import Draw, Sample
from longpress.analysis.kept_maps import append
from longpress.analysis.records import RecordWriter
from longpress.evaluation.config import Settings
from longpress.evaluation.kept_map_builder import kept_map
from longpress.evaluation.plan import Work
from longpress.evaluation.record_builder import RecordBuilder
from longpress.evaluation.signals import Interruption
from longpress.models.loading import KnownModel, LoadedModel
from longpress.pipeline.facade import CompressingPipeline
from longpress.pipeline.prompt import Question
from longpress.pipeline.results import Failure, Request, Result


class Known(NamedTuple):
    """What was known of a run when it was planned.

    Attributes:
        done: keys that have a record.
        mapped: ids of the contexts whose kept tokens are recorded.
    """

    done: AbstractSet[str]
    mapped: AbstractSet[str]


class Answering:
    """Answers contexts with a loaded model, and writes the records.

    Attributes:
        settings: of the run.
        pipeline: the model at work.
        records: makes the records, and counts the answers that failed.
    """

    def __init__(self, settings: Settings, loaded: LoadedModel, known: Known, writer: RecordWriter) -> None:
        """Answer nothing yet.

        Args:
            settings: of the run.
            loaded: the model that answers.
            known: what need not be answered again.
            writer: takes the records; whoever made it closes it.
        """
        self.settings = settings
        self.pipeline = pipeline_of(settings, loaded)
        self.records = RecordBuilder(settings, loaded)
        self._known, self._writer = known, writer

    def answer(self, work: Iterable[Work], interruption: Interruption) -> Iterator[Work]:
        """Answer contexts, append the records that are missing, and give each context once it has its own.

        Args:
            work: is taken as far as there is room to read, so that it may be handed out piece by piece.
            interruption: of the run; after a signal, what is decoded is still written.

        Raises:
            Stopped: a signal came.
        """
        reading = deque[Work]()  # contexts without their records, the oldest first

        def requests() -> Iterator[Request]:
            for context in work:
                reading.append(context)
                yield request_of(self.settings, context, self._known.mapped)

        for results in interruption.guarding(self.pipeline.stream(requests())):
            context = reading.popleft()
            self._write(context, results)
            yield context

    def _write(self, context: Work, results: Sequence[Result | Failure]) -> None:
        """Append the records of a context that are missing, and its kept map where one is asked for."""
        keys = {sample.answer_id: self.records.keys(sample) for sample in context.samples}
        for variant, result in _with_variants(context, results):
            sample = context.samples[result.question]
            key = keys[sample.answer_id][variant]
            is_written = bool(result.answer.stop_reason)  # a signal leaves others without one
            if is_written and key not in self._known.done:
                self._writer.append(self.records.record(sample, variant, result, key))
        if context.samples[0].context_id in self._known.mapped:
            path = self.settings.results / "kept_maps" / self._writer.path.name
            self._append_kept_maps(path, context, results, keys)

    def _append_kept_maps(
        self,
        path: Path,
        context: Work,
        results: Sequence[Result | Failure],
        keys: Mapping[str, Sequence[str]],
    ) -> None:
        """Record which tokens of a context each variant keeps.

        Each reading of the context has a map of its own: in query-aware mode there is one per question, else
        one per set of rotary frequencies that the questions need.
        """
        query_aware = self.settings.options.query_aware
        parts: dict[int, list[int]] = {}
        for result in results:
            if isinstance(result, Result):
                reading = result.question if query_aware else result.context.rope_length
                if result.question not in parts.setdefault(reading, []):
                    parts[reading].append(result.question)
        for part in parts.values():
            samples = [context.samples[question] for question in part]
            kept = {
                variant: result.context
                for variant, result in _with_variants(context, results)
                if result.question in part and isinstance(result, Result)
            }
            if not kept:
                continue
            text = samples[0].context + (samples[0].question if query_aware else "")
            spans = self.pipeline.token_spans(text, samples[0].chat_template)
            if spans is None:  # it cannot be told where tokens stand
                return
            spans = spans[: next(iter(kept.values())).tokens]
            kept_by_key = {
                keys[sample.answer_id][variant]: variant_keeps
                for variant, variant_keeps in kept.items()
                for sample in samples
            }
            append(path, kept_map(text, spans, samples, kept_by_key))


def pipeline_of(settings: Settings, model: LoadedModel | KnownModel) -> CompressingPipeline:
    """The pipeline of a run over its model, or, to plan with, over the model without its weights."""
    return CompressingPipeline(
        model.model if isinstance(model, LoadedModel) else model.skeleton(),
        model.tokenizer,
        max_length=model.window,
        options=settings.options,
    )


def request_of(settings: Settings, context: Work, mapped: AbstractSet[str]) -> Request:
    """What the pipeline is asked about a context; of those in `mapped`, what is kept is counted."""
    first = context.samples[0]
    questions = [
        replace(question_of(sample), reference=settings.benchmark.reference_answer(sample))
        for sample in context.samples
    ]
    return Request(
        context=first.context,
        questions=questions,
        press=[settings.variants[variant].variant for variant in context.variants],
        query_aware=settings.options.query_aware,
        chat_template=first.chat_template,
        count_kept=first.context_id in mapped,
    )


def question_of(sample: Sample) -> Question:
    """What the pipeline is asked for a sample."""
    return Question(
        sample.question,
        sample.answer_prefix,
        sample.max_new_tokens,
        sample.min_new_tokens,
        sample.stop,
        sample.evidence,
        seed=0 if sample.draw is None else seed_of(sample.id, sample.draw),
    )


def seed_of(sample_id: str, draw: Draw) -> int:
    """The seed of one drawn answer: another one for every sample, seed of the run, and number.

    It is the same under every press, so that presses are compared on the same luck.
    """
    text = json.dumps([sample_id, *draw])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _with_variants(
    context: Work, results: Sequence[Result | Failure]
) -> Iterator[tuple[int, Result | Failure]]:
    """Each result with the number of its variant: they come variant by variant, then question by question."""
    numbers = (variant for variant in context.variants for _ in context.samples)
    return zip(numbers, results, strict=True)
