"""The run: what is not done yet, context by context, one record per sample and variant, then the tables."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.base import Sample, group_by_context
from longpress.analysis.kept_maps import append, kept_map
from longpress.analysis.records import Record, RecordWriter, read_records
from longpress.evaluation.config import Settings
from longpress.evaluation.environment import environment, redacted, write_description, write_memory
from longpress.evaluation.plan import Item, Plan, describe
from longpress.evaluation.record_builder import keys_of, record_of, scored
from longpress.evaluation.signals import Interruption
from longpress.evaluation.workers import Workers, starting
from longpress.models.host_memory import held_memory_bytes, peak_memory_bytes
from longpress.models.loading import KnownModel, LoadedModel, ModelConfig, find_model
from longpress.pipeline import CompressingPipeline, Question, Request
from longpress.pipeline.memory import MemoryPlan
from longpress.pipeline.results import Failure, Result

PROGRESS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


class EvaluationRunner:
    """Runs a checked configuration.

    Attributes:
        settings: the configuration.
        pipeline: the model at work; None until it is needed.
        mapped: contexts (by id) whose kept tokens are recorded.
        failed: answers of this run that failed; their records say why, and the next run tries them again.
    """

    def __init__(self, settings: Settings) -> None:
        """Read and load nothing yet."""
        known = [field.name for field in fields(ModelConfig)]
        if unknown := settings.model.keys() - set(known):
            raise ValueError(
                f"a model has no option {', '.join(sorted(map(str, unknown)))}; it has {', '.join(known)}"
            )
        self.settings = settings
        self.model_config = ModelConfig(**settings.model)
        self.pipeline: CompressingPipeline | None = None
        self.mapped: Set[str] = set()
        self.failed = 0

    def run(self, workers: Workers | None = None) -> Path:
        """Do what is not done yet, write the tables, print them.

        Args:
            workers: processes that `starting(settings)` has started; it is done here where they were not.

        Returns:
            The folder of the results.

        Raises:
            ValueError: the model names nothing that can be loaded, the benchmark gives no sample, or the
                folder cannot be written.
            Stopped: a signal came; what was decoded is written.
        """
        if workers is None and self.settings.workers != 1:
            with starting(self.settings) as started:
                if started is not None:
                    return self.run(started)
        plan, folder = self.plan(), self.settings.results
        work = plan.work()
        if self.settings.plan:
            print(describe([("", plan)]))
            if work:
                print(f"memory: {self._memory(plan.known, work) or 'no context can be read'}")
            return folder
        if not work:
            print(f"nothing to do: all {plan.answers} answers are in {folder}", file=sys.stderr)
        else:
            check_writable(folder)
            with (
                Interruption() as interruption,
                Progress(*PROGRESS, disable=not sys.stderr.isatty()) as progress,
            ):
                bar = progress.add_task("contexts", total=len(work))
                for asked, _ in self._run_inference(plan, work, workers, interruption):
                    progress.update(bar, advance=1, description=f"{asked[0].task:<16}")
        if plan.answers:  # a shard may have no context
            from longpress.analysis.tables.write import (
                report,
            )  # statistics take a second to import, which workers need not wait for

            report([folder], plots=self.settings.plots)
        return folder

    def plan(self) -> Plan:
        """What there is to do, before any weight is loaded.

        Raises:
            ValueError: the model names nothing that can be loaded, or the benchmark gives no sample.
        """
        known, settings = find_model(self.model_config), self.settings
        name, samples = settings.benchmark.name, list[Sample]()
        try:
            samples.extend(settings.benchmark.samples(known.tokenizer, known.window, settings.limit))
        except ValueError:
            raise
        except Exception as error:  # its rows may hold anything
            place = f" behind sample {samples[-1].id}" if samples else ""
            raise ValueError(
                f"benchmark {name} cannot read its data{place} ({type(error).__name__}: {error}); check its path and options"
            ) from error
        if not samples:
            raise ValueError(f"benchmark {name} gives no sample with these options")
        folder = settings.results
        done = (
            {record.key for record in read_records([folder]) if record.error is None}
            if folder.is_dir()
            else set()
        )
        keys = {sample.id: keys_of(settings, known, sample) for sample in samples}
        counted = Counter[str]()
        for sample in samples:
            counted[sample.task] += 1
            if counted[sample.task] <= settings.kept_maps:
                self.mapped |= {sample.context_id}
        groups = list(group_by_context(samples))
        n_variants = len(settings.variants)
        alone = settings.prefill == "chunked"
        plan = Plan(known, name, folder, n_variants, settings.query_aware, groups, keys, done, alone)
        return plan.shard(*settings.shard)

    def _run_inference(
        self, plan: Plan, work: Sequence[Item], workers: Workers | None, interruption: Interruption
    ) -> Iterator[Item]:
        """Answer what is missing, here or in worker processes, and give every context back whose records are written."""
        settings = self.settings

        def describe_once(made_with: Mapping[str, Any]) -> None:
            write_description(
                plan.folder, settings, made_with, list(plan.keys), [one for group, _ in work for one in group]
            )

        if workers is None:
            loaded = plan.known.load()
            describe_once(environment(loaded))
            planned, held = self._memory(loaded, work), held_memory_bytes()
            yield from self.answer(loaded, work, plan.done, interruption)
            if planned is not None:
                write_memory(plan.folder, planned, held, peak_memory_bytes())
            return
        with RecordWriter(plan.folder) as writer:

            def lost(item: Item, why: str) -> None:
                for at, (question, sample) in itertools.product(item[1], enumerate(item[0])):
                    if (key := plan.keys[sample.id][at]) not in plan.done:
                        failure = Failure(settings.variants[at][1], question, RuntimeError(why))
                        writer.append(self._record(plan.known, sample, at, failure, key))

            yield from workers.finished(work, (plan.done, self.mapped), describe_once, lost)
        self.failed += workers.failed

    def answer(
        self, loaded: LoadedModel, items: Iterable[Item], done: Set[str], interruption: Interruption
    ) -> Iterator[Item]:
        """Answer contexts, append the records that are missing, and give each context back when its records are written."""
        settings = self.settings
        self.pipeline = self._pipeline(loaded)
        read = deque[Item]()

        def requests() -> Iterator[Request]:
            for item in items:
                read.append(item)
                yield self._request(item)

        with RecordWriter(settings.results) as writer:
            for results in interruption.guarding(self.pipeline.stream(requests())):
                asked, missing = item = read.popleft()
                keys = {sample.id: keys_of(settings, loaded, sample) for sample in asked}
                for at, result in zip((at for at in missing for _ in asked), results, strict=True):
                    sample = asked[result.question]
                    if keys[sample.id][at] not in done and result.answer.stop_reason:
                        writer.append(self._record(loaded, sample, at, result, keys[sample.id][at]))
                if asked[0].context_id in self.mapped:
                    self._map(
                        settings.results / "kept_maps" / writer.path.name, asked, missing, results, keys
                    )
                yield item

    def _pipeline(self, model: LoadedModel | KnownModel) -> CompressingPipeline:
        """Over a model, or over what it will be when it is loaded, to plan with."""
        settings = self.settings
        return CompressingPipeline(
            model.model if isinstance(model, LoadedModel) else model.skeleton(),
            model.tokenizer,
            window=model.window,
            prefill_chunk=settings.prefill_chunk,
            prefill=settings.prefill,
            max_batch_bytes=int(settings.max_batch_gb * 2**30),
            fidelity=settings.fidelity,
            offload=settings.offload,
        )

    def _memory(self, model: LoadedModel | KnownModel, work: Sequence[Item]) -> MemoryPlan | None:
        """The bound of the run: that of its longest context or of the one with the most questions; None where none can be read."""
        pipeline = self._pipeline(model)
        sizes: tuple[Callable[[Item], int], ...] = (
            lambda item: len(item[0][0].context),
            lambda item: len(item[0]),
        )
        plans = [self._largest(pipeline, work, size) for size in sizes]
        return max((plan for plan in plans if plan is not None), key=lambda plan: plan.total, default=None)

    def _largest(
        self, pipeline: CompressingPipeline, work: Sequence[Item], size: Callable[[Item], int]
    ) -> MemoryPlan | None:
        for item in sorted(work, key=size, reverse=True):
            try:
                return pipeline.plan(self._request(item), len(work))
            except Exception:  # reading it will fail in the same way, and say so
                continue
        return None

    def _map(
        self,
        path: Path,
        asked: Sequence[Sample],
        missing: Sequence[int],
        results: Sequence[Result | Failure],
        keys: Mapping[str, Sequence[str]],
    ) -> None:
        """Record which tokens of a context each variant keeps; in query-aware mode each question was read with a context of its own."""
        assert self.pipeline is not None
        parts = [[at] for at in range(len(asked))] if self.settings.query_aware else [list(range(len(asked)))]
        for part in parts:
            samples = [asked[at] for at in part]
            kept = {
                at: result.context
                for at, result in zip((at for at in missing for _ in asked), results, strict=True)
                if result.question in part and isinstance(result, Result)
            }
            if not kept:
                continue
            text = samples[0].context + (samples[0].question if self.settings.query_aware else "")
            try:
                spans = self.pipeline.token_spans(text, samples[0].chat_template)
            except NotImplementedError:  # a tokenizer that does not know where its tokens stand
                return
            by_key = {keys[sample.id][at]: one for at, one in kept.items() for sample in samples}
            append(path, kept_map(text, spans, samples, by_key))

    def _request(self, work: tuple[Sequence[Sample], Sequence[int]]) -> Request:
        """What the pipeline is asked about one context."""
        samples, missing = work
        variants = [self.settings.variants[at][1] for at in missing]
        questions = [
            replace(question_of(sample), reference=self.settings.benchmark.reference_answer(sample))
            for sample in samples
        ]
        mapped = samples[0].context_id in self.mapped
        return Request(
            samples[0].context,
            questions,
            variants,
            self.settings.query_aware,
            samples[0].chat_template,
            count_kept=mapped,
        )

    def _record(
        self, model: KnownModel | LoadedModel, sample: Sample, at: int, result: Result | Failure, key: str
    ) -> Record:
        """The record of variant `at`; failures are counted, and the first is told."""
        outcome = scored(self.settings, sample, result)
        if isinstance(outcome, Exception):
            self.failed += 1
            if self.failed == 1:
                why = f"{type(outcome).__name__}: {redacted(str(outcome))}"
                print(f"failed: {sample.id} under {self.settings.variants[at][0]}: {why}", file=sys.stderr)
        return record_of(self.settings, model, sample, at, result, key, outcome)


def question_of(sample: Sample) -> Question:
    """What the pipeline is asked for a sample."""
    return Question(
        sample.question,
        sample.answer_prefix,
        sample.max_new_tokens,
        sample.min_new_tokens,
        sample.stop,
        sample.evidence,
    )


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before a model is loaded.

    Raises:
        ValueError: names the folder and the reason.
    """
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "records") as probe:
            probe.write(b"longpress")
    except OSError as error:
        raise ValueError(
            f"results={folder} cannot be written ({error.strerror}); give another folder, or free space"
        ) from error
