"""The options of a run, each declared once: a field gives name, type, default and help of an option.

To add an option, add a field here, and use it as `settings.options.<name>`. The names that Hydra knows, the
checks of names and types, and `--help` follow from the fields (see `option_fields.py`); `__post_init__`
refuses values that are out of range. The options of a pipeline, which `RunOptions` inherits, are declared in
`longpress/pipeline/options.py`.

Importing this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvcache.budget import Budget
from longpress.analysis.records import LARGEST
from longpress.pipeline.options import PipelineOptions

Axis = float | tuple[float, ...] | None
"""The type of an option that a sweep runs over: one value, several, or none."""

BUDGETS = "What stays of a context"
SAMPLES = "What is answered"
RESULTS = "What is written"
WORK = "How the work is shared"


def option(heading: str, default: Any, help: str) -> Any:
    """A field: its default, the sentence that `--help` prints beside it, and the heading it stands under."""
    return field(default=default, metadata={"heading": heading, "help": help})


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of several jobs that share the contexts of a run: every `count`-th context, from number `index` on.

    Raises:
        ValueError: there is no such job.
    """

    count: int = option(WORK, 1, "jobs that fill the same folder: -m shard.count=8 'shard.index=range(8)'")
    index: int = option(WORK, 0, "which of these jobs this one is, from 0")

    def __post_init__(self) -> None:
        """Refuse an index that is none of the jobs."""
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard.index={self.index} with shard.count={self.count}: the index must be a whole number "
                "from 0 to below the count"
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(PipelineOptions):
    """What a run does.

    Raises:
        ValueError: an option has a value that is not allowed; says which are.
    """

    compression_ratio: Axis = option(
        BUDGETS,
        None,
        "fraction of the KV entries removed, in [0, 1), or a list; 0.5 where no budget is given",
    )
    budget_tokens: Axis = option(
        BUDGETS, None, "instead or as well: entries kept per KV head on average, or a list"
    )
    threshold: Axis = option(
        BUDGETS,
        None,
        "instead or as well: the lowest score that stays, or a list, for presses that choose by a score",
    )
    cache_bits: Axis = option(
        BUDGETS,
        None,
        "bits of a number in the cache, 16, 8, 4 or 2, or a list; null: as the model computes it",
    )
    baseline: bool = option(BUDGETS, True, "add the full cache (press none) to every sweep")

    limit: int | None = option(SAMPLES, None, "samples per task; null: all")
    seed: int = option(SAMPLES, 42, "of generated samples, and of presses that draw")
    max_new_tokens: int | None = option(
        SAMPLES, None, "most tokens of an answer, in place of the suite's own limits; null: those"
    )
    samples_per_question: int = option(
        SAMPLES,
        1,
        "answers drawn to each question under each sampling_seed; tables then hold their mean, and pass@k",
    )
    sampling_seed: Axis = option(
        SAMPLES, None, "of the numbers with which answers are drawn, or a list; null: that of the run (seed)"
    )
    query_aware: bool = option(
        SAMPLES,
        False,
        "the question is seen while compressing; then every question needs a prefill of its own",
    )

    results: str | int | None = option(RESULTS, None, "folder to fill; null: results/<benchmark>-<model>")
    kept_maps: int = option(
        RESULTS, 2, "samples per task whose kept tokens are recorded, to shade them in report.html; 0: none"
    )
    plots: bool = option(RESULTS, True, "draw plots at the end, where matplotlib is installed")
    plan: bool = option(
        RESULTS,
        False,
        "print what would be done (jobs, prefills, variants, answers left) and stop; loads no weights",
    )

    workers: int = option(
        WORK,
        1,
        "processes that share the contexts of this run, each with the model; 0: one per GPU. On a CPU two "
        "processes of one thread beat one of two, where memory allows. Threads: OMP_NUM_THREADS if it is "
        "set, else torch's choice for one process, and cores / workers for each of several",
    )
    shard: Shard = option(WORK, Shard(), "one of several jobs on the same folder")
    presses_dir: str | None = option(WORK, None, "folder with presses of your own")

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        super().__post_init__()
        self.budgets()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1 sample per task, or null for all")
        if not -LARGEST < self.seed < LARGEST:
            raise ValueError(f"seed={self.seed} is too large; it must lie within 64 bits")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1 token, or null for the suite's own"
            )
        if self.samples_per_question < 1:
            raise ValueError(
                f"samples_per_question={self.samples_per_question} must be at least 1 answer to each question"
            )
        if self.is_greedy and (self.samples_per_question > 1 or self.sampling_seed is not None):
            raise ValueError(
                f"samples_per_question={self.samples_per_question} and sampling_seed={self.sampling_seed} "
                "with temperature=0, which always gives the same answer: set a temperature, or leave them out"
            )
        self.sampling_seeds()
        if self.kept_maps < 0:
            raise ValueError(
                f"kept_maps={self.kept_maps} must be a number of samples per task, or 0 for none"
            )
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must be a number of processes, or 0 for one per GPU")

    def budgets(self) -> list[Budget]:
        """The budgets that are asked for, each once: ratios, then tokens, then thresholds.

        Raises:
            ValueError: a value is no such budget, or a list of ratios is empty.
        """
        if self.compression_ratio == ():
            raise ValueError("compression_ratio=[] names no ratio; give at least one in [0, 1)")
        budgets = [
            *(Budget(ratio=ratio) for ratio in _values(self, "compression_ratio")),
            *(Budget(tokens=tokens) for tokens in _values(self, "budget_tokens")),
            *(Budget(threshold=score) for score in _values(self, "threshold")),
        ]
        return list(dict.fromkeys(budgets)) or [Budget(ratio=0.5)]

    def sampling_seeds(self) -> list[int]:
        """The seeds under which answers are drawn, each once.

        Raises:
            ValueError: a value is no such seed, or the list is empty.
        """
        if self.sampling_seed == ():
            raise ValueError("sampling_seed=[] names no seed; give at least one, or null")
        seeds = _values(self, "sampling_seed") or [self.seed]
        for seed in seeds:
            is_whole = type(seed) in (int, float) and float(seed).is_integer()
            if not is_whole or not -LARGEST < seed < LARGEST:
                raise ValueError(f"sampling_seed={seed!r} must be a whole number within 64 bits, or a list")
        return list(dict.fromkeys(int(seed) for seed in seeds))

    def bits(self) -> list[int | None]:
        """The sizes of a stored number that are asked for, each once; None: as the model computes it."""
        sizes = _values(self, "cache_bits", may_be_null=True)
        whole = [int(bits) if isinstance(bits, float) and bits.is_integer() else bits for bits in sizes]
        return list(dict.fromkeys(whole)) or [None]


def _values(options: RunOptions, name: str, may_be_null: bool = False) -> list[Any]:
    """The values of an axis; those that a command line gave as text become numbers, where they can.

    Raises:
        ValueError: null stands beside other values, where it means nothing.
    """
    given = getattr(options, name)
    if given is None:
        return []
    values = given if isinstance(given, tuple) else (given,)
    if None in values and not may_be_null:
        raise ValueError(f"{name}={list(values)!r} holds null, which is no number; leave it out")
    return [_number(value) for value in values]


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
