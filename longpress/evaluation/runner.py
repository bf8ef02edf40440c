"""The run: a plan of what is not done yet, its answers, made here or by worker processes, and the tables."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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

from benchmarks.base import Benchmark, Draw, Sample, group_by_context
from longpress.analysis.records import RecordWriter, read_records
from longpress.evaluation.answering import Answering, Known, pipeline_of, request_of
from longpress.evaluation.config import Settings, model_config
from longpress.evaluation.environment import environment, write_description, write_memory
from longpress.evaluation.plan import Plan, Work, describe
from longpress.evaluation.prompt_measure import PromptMeasure
from longpress.evaluation.record_builder import RecordBuilder
from longpress.evaluation.signals import Interruption
from longpress.evaluation.workers import Workers, starting
from longpress.models.host_memory import held_memory_bytes, peak_memory_bytes
from longpress.models.loading import KnownModel, LoadedModel, find_model
from longpress.pipeline.facade import CompressingPipeline
from longpress.pipeline.memory import MemoryPlan
from longpress.pipeline.results import Failure

PROGRESS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)
"""What the progress bar on a terminal shows."""


class EvaluationRunner:
    """Runs a checked configuration.

    Attributes:
        settings: the configuration.
        model_config: the model to load.
        failed: answers of this run that failed; their records say why, and the next run tries them again.
    """

    def __init__(self, settings: Settings) -> None:
        """Read and load nothing yet.

        Raises:
            ValueError: an option of the model does not exist.
        """
        self.settings = settings
        self.model_config = model_config(settings.model)
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
        if workers is None and self.settings.options.workers != 1:
            with starting(self.settings) as started:
                if started is not None:
                    return self.run(started)
        plan, folder = self.plan(), self.settings.results
        work = plan.work()
        if self.settings.options.plan:
            self._print_plan(plan, work)
            return folder
        if not work:
            print(f"nothing to do: all {plan.answers} answers are in {folder}", file=sys.stderr)
        else:
            check_writable(folder)
            self._answer_all(plan, work, workers)
        if plan.answers:  # a shard may have no context
            # statistics take a second to import, for which workers need not wait
            from longpress.analysis.tables.write import write_tables

            write_tables([folder], plots=self.settings.options.plots)
        return folder

    def plan(self) -> Plan:
        """What there is to do, before any weight is loaded.

        Raises:
            ValueError: the model names nothing that can be loaded, or the benchmark gives no sample.
        """
        settings, options = self.settings, self.settings.options
        known = find_model(self.model_config)
        samples = self._samples(known)
        builder = RecordBuilder(settings, known)
        stored = read_records([settings.results]) if settings.results.is_dir() else ()
        plan = Plan(
            known=known,
            benchmark=settings.benchmark.name,
            folder=settings.results,
            n_variants=len(settings.variants),
            query_aware=options.query_aware,
            groups=list(group_by_context(samples)),
            keys={sample.answer_id: builder.keys(sample) for sample in samples},
            done={record.key for record in stored if record.error is None},
            mapped=first_contexts(samples, options.kept_maps),
            reads_per_variant=options.compress_every is not None,
        )
        return plan.shard(options.shard.index, options.shard.count)

    def _samples(self, known: KnownModel) -> list[Sample]:
        """All samples of the benchmark, each as often as answers to it are drawn.

        Raises:
            ValueError: there are none, or their data cannot be read.
        """
        benchmark, samples = self.settings.benchmark, list[Sample]()
        measure = PromptMeasure(known.tokenizer, self.settings.options)
        try:
            samples.extend(benchmark.samples(measure, known.window, self.settings.options.limit))
        except ValueError:
            raise
        except Exception as error:  # its rows may hold anything
            place = f" behind sample {samples[-1].id}" if samples else ""
            raise ValueError(
                f"benchmark {benchmark.name} cannot read its data{place} ({type(error).__name__}: {error}); "
                "check its path and options"
            ) from error
        if not samples:
            raise ValueError(f"benchmark {benchmark.name} gives no sample with these options")
        check_window(benchmark, samples, measure, known.window)
        return [one for sample in samples for one in self._drawn(sample)]

    def _drawn(self, sample: Sample) -> list[Sample]:
        """A sample once for every answer to it: the greedy one, or all that are drawn."""
        options = self.settings.options
        if options.max_new_tokens is not None:
            sample = replace(sample, max_new_tokens=options.max_new_tokens)
        if options.is_greedy:
            return [sample]
        return [
            replace(sample, draw=Draw(seed, number))
            for seed in options.sampling_seeds()
            for number in range(options.samples_per_question)
        ]

    def _answer_all(self, plan: Plan, work: Sequence[Work], workers: Workers | None) -> None:
        """Answer what is missing, and show how far it is."""
        with (
            Interruption() as interruption,
            Progress(*PROGRESS, disable=not sys.stderr.isatty()) as progress,
        ):
            bar = progress.add_task("contexts", total=len(work))
            for context in self._run_inference(plan, work, workers, interruption):
                progress.update(bar, advance=1, description=f"{context.samples[0].task:<16}")

    def _run_inference(
        self, plan: Plan, work: Sequence[Work], workers: Workers | None, interruption: Interruption
    ) -> Iterator[Work]:
        """Answer what is missing, here or in worker processes; gives each context once it has its records."""
        known = Known(plan.done, plan.mapped)

        def write_made_with(made_with: Mapping[str, Any]) -> None:
            answered = [sample for context in work for sample in context.samples]
            prompts = RecordBuilder(self.settings, plan.known).described(answered)
            write_description(plan.folder, self.settings, made_with, prompts, list(plan.keys), answered)

        if workers is not None:
            yield from self._run_workers(plan, work, workers, known, write_made_with)
            return
        loaded = plan.known.load()
        write_made_with(environment(loaded))
        planned, held = self._memory(loaded, work), held_memory_bytes()
        with RecordWriter(plan.folder) as writer:
            answering = Answering(self.settings, loaded, known, writer)
            try:
                yield from answering.answer(work, interruption)
            finally:
                self.failed += answering.records.failed
        if planned is not None:
            write_memory(plan.folder, planned, held, peak_memory_bytes())

    def _run_workers(
        self,
        plan: Plan,
        work: Sequence[Work],
        workers: Workers,
        known: Known,
        ready: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Work]:
        """Have worker processes answer what is missing; what they cannot, becomes failed records here."""
        builder = RecordBuilder(self.settings, plan.known)
        with RecordWriter(plan.folder) as writer:

            def give_up(context: Work, why: str) -> None:
                for number in context.variants:
                    variant = self.settings.variants[number].variant
                    for question, sample in enumerate(context.samples):
                        key = plan.keys[sample.answer_id][number]
                        if key not in plan.done:
                            failure = Failure(variant, question, RuntimeError(why))
                            writer.append(builder.record(sample, number, failure, key))

            yield from workers.finished(work, known, ready, give_up)
        self.failed += workers.failed + builder.failed

    def _print_plan(self, plan: Plan, work: Sequence[Work]) -> None:
        print(describe([("", plan)]))
        if work:
            print(f"memory: {self._memory(plan.known, work) or 'no context can be read'}")

    def _memory(self, model: LoadedModel | KnownModel, work: Sequence[Work]) -> MemoryPlan | None:
        """The bound of the run: that of its longest context, or of the one with the most questions.

        Returns:
            The larger of the two; None where no context can be read.
        """
        pipeline = pipeline_of(self.settings, model)
        sizes: tuple[Callable[[Work], int], ...] = (
            lambda context: len(context.samples[0].context),
            lambda context: len(context.samples),
        )
        plans = [self._largest(pipeline, work, size) for size in sizes]
        return max((plan for plan in plans if plan is not None), key=lambda plan: plan.total, default=None)

    def _largest(
        self, pipeline: CompressingPipeline, work: Sequence[Work], size: Callable[[Work], int]
    ) -> MemoryPlan | None:
        """The memory plan of the largest context that can be read."""
        for context in sorted(work, key=size, reverse=True):
            try:
                return pipeline.plan(request_of(self.settings, context, frozenset()), len(work))
            except Exception:  # reading it will fail in the same way, and say so
                continue
        return None


def first_contexts(samples: Sequence[Sample], per_task: int) -> set[str]:
    """Ids of the contexts of the first so many samples of every task."""
    of_task: dict[str, dict[str, str]] = defaultdict(dict)
    for sample in samples:
        of_task[sample.task][sample.id] = sample.context_id
    return {context for ids in of_task.values() for context in list(ids.values())[:per_task]}


def check_window(
    benchmark: Benchmark, samples: Sequence[Sample], measure: PromptMeasure, window: int
) -> None:
    """Refuse samples none of which fits the model's window; say so on stderr where the longest does not.

    The shortest and the longest are counted: the benchmarks that come with longpress cut or refuse what is
    too long themselves.

    Raises:
        ValueError: no sample fits.
    """
    options = [name for name in ("length", "max_length", "tasks") if hasattr(benchmark, name)]
    fix = f"choose another benchmark.{options[0]}, or a model with a longer window"
    by_length = sorted(
        samples, key=lambda sample: len(sample.context) + len(sample.question) + sample.max_new_tokens
    )
    shortest, longest = by_length[0], by_length[-1]
    if (needed := _needed(measure, shortest)) > window:
        raise ValueError(
            f"benchmark {benchmark.name}: even the shortest prompt, {shortest.id}, takes {needed} tokens "
            f"with its answer, but the model's window is {window}; {fix}"
        )
    if (needed := _needed(measure, longest)) > window:
        print(
            f"some answers will fail: the prompt {longest.id} takes {needed} tokens with its answer, but the "
            f"model's window is {window}; {fix}",
            file=sys.stderr,
        )


def _needed(measure: PromptMeasure, sample: Sample) -> int:
    """Tokens of a prompt and its answer; 0 of one that cannot be read, which will fail and say so.

    Raises:
        ValueError: the chat template cannot be used.
    """
    measure.prompt(sample.chat_template)
    try:
        return measure.needed(sample)
    except Exception:  # its text may be of no kind that a tokenizer takes
        return 0


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
