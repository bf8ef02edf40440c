"""From a command line to all that a run needs before a model is loaded: options, benchmark, presses.

What may be given is declared elsewhere, and registered with Hydra here: the options of a run by `RunOptions`,
those of presses and benchmarks by their classes. YAML files state choices only.

Importing this module needs no torch; `settings` does, since it makes presses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from benchmarks.base import Benchmark
from kvcache.budget import Budget
from longpress.catalogue import Entry, benchmarks, conf_folder, presses
from longpress.evaluation.choices import make_benchmark, make_press, schema
from longpress.evaluation.option_fields import checked, defaults, refuse_unknown
from longpress.evaluation.options import RunOptions

if TYPE_CHECKING:
    from longpress.models.configs import ModelConfig
    from longpress.pipeline.variants import Variant
    from presses.base import BasePress

CHOICES = ("model", "benchmark", "presses")
"""Parts of a configuration beside the options: what is chosen, each with options of its own."""


class TableLine(NamedTuple):
    """A line of the table.

    Attributes:
        label: the press's name or choice, with "@4bit" behind it where the cache is quantised.
        variant: the press, its budget, and the bits of a number in the cache.
    """

    label: str
    variant: Variant


@dataclass(frozen=True)
class Settings:
    """A checked configuration.

    Attributes:
        options: of the run, as they were given.
        model: fields of `longpress.models.loading.ModelConfig`.
        benchmark: ready to give samples.
        variants: the lines of the table, the full cache first.
        results: folder to fill.
        resolved: the whole configuration, as plain values.
    """

    options: RunOptions
    model: dict[str, Any]
    benchmark: Benchmark
    variants: list[TableLine]
    results: Path
    resolved: dict[str, Any]


def register(arguments: Sequence[str] = (), options: type[RunOptions] = RunOptions) -> None:
    """Tell Hydra what exists: the options of a run, and a choice per benchmark and per press.

    A chosen press has its options under `presses.<name>`; choosing several (`press=[a,b]`) gives several such
    nodes.

    Args:
        arguments: of the command line, searched for `presses_dir=`, whose presses are choices too.
        options: the class that declares the options of a run.

    Raises:
        ValueError: `presses_dir` is no folder, or repeats a name; or an argument names a target.
    """
    refuse_targets(" ".join(arguments))
    store = ConfigStore.instance()
    store.store(name="options", node=OmegaConf.create(defaults(options)))
    entries = presses_beside(arguments)
    for name, entry in benchmarks().items():
        store.store(group="benchmark", name=name, node=schema(entry, entries), package="benchmark")
    for name, entry in entries.items():
        store.store(group="press", name=name, node=schema(entry, entries), package=f"presses.{name}")


def presses_beside(arguments: Sequence[str]) -> dict[str, Entry]:
    """All presses, with those of the folder that the arguments name by `presses_dir=`.

    Raises:
        ValueError: the folder does not exist, or repeats a name.
    """
    folders = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("presses_dir=")]
    return presses(folders[-1] if folders and folders[-1] != "null" else None)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that overrides give, after `register`.

    Raises:
        ValueError: they give none.
    """
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            return compose("config", overrides=list(overrides))
    except HydraException as error:
        raise ValueError(str(error)) from error


def settings(config: DictConfig, options: type[RunOptions] = RunOptions) -> Settings:
    """Check everything that can be checked before a model loads.

    Args:
        config: as Hydra composes it, or the `resolved` of other settings.
        options: the class that declares the options of a run.

    Raises:
        ValueError: one sentence: what was given, what is allowed, what to do.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    refuse_targets(str(plain))
    _check_choices(plain, options)
    run = checked(options, {name: value for name, value in plain.items() if name not in CHOICES})
    if run.workers != 1 and plain["model"].get("device_map") is not None:
        raise ValueError(
            f"workers={run.workers} with model.device_map: one model takes all devices; set workers=1"
        )
    benchmark = make_benchmark(plain["benchmark"])
    return Settings(
        options=run,
        model=plain["model"],
        benchmark=benchmark,
        variants=_variants(run, plain.get("presses") or {}),
        results=_results_folder(run, benchmark.name, plain["model"]["name"]),
        resolved=plain,
    )


def model_config(options: Mapping[str, Any]) -> ModelConfig:
    """Which model, and how to run it.

    Args:
        options: of the model, as `Settings.model` has them.

    Raises:
        ValueError: an option does not exist.
    """
    from longpress.models.configs import ModelConfig  # which needs torch

    known = [field.name for field in fields(ModelConfig)]
    if unknown := sorted(map(str, options.keys() - set(known))):
        raise ValueError(f"a model has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return ModelConfig(**options)


def refuse_targets(text: str) -> None:
    """Refuse a configuration that names a target: only what our own files name is made from one.

    Hydra itself takes launchers and sweepers from its plugins alone.

    Raises:
        ValueError: it names one.
    """
    if "_target_" in text:
        raise ValueError(
            "_target_ is not allowed: presses, benchmarks, models and launchers are chosen by name, and "
            "nothing else is made"
        )


def _check_choices(plain: Mapping[str, Any], options: type[RunOptions]) -> None:
    """Refuse names that are neither options nor choices, and choices that lack what a run needs of them.

    Raises:
        ValueError: says which, and what to do.
    """
    refuse_unknown(plain, [*defaults(options), *CHOICES])
    if missing := [name for name in ("model", "benchmark") if name not in plain]:
        raise ValueError(f"{', '.join(missing)} cannot be deleted; leave the default, or give a value")
    for name in CHOICES:
        if not isinstance(plain.get(name), dict) and not (name == "presses" and plain.get(name) is None):
            raise ValueError(f"{name}={plain[name]!r} must be a group of options")
    if missing := [name for name in ("path", "name") if name not in plain["model"]]:
        raise ValueError(f"model lacks {', '.join(missing)}; leave the default, or give a value")
    if not str(plain["model"]["name"]).isprintable():
        raise ValueError(
            f"model.name={plain['model']['name']!r} must be text that can be printed: it stands in tables"
        )


def _results_folder(options: RunOptions, benchmark: str, model: Any) -> Path:
    """The folder to fill; where none is given, one that is named after benchmark and model."""
    if options.results:
        return Path(str(options.results))
    name = f"{benchmark}-{model}"
    safe = (character if character.isalnum() or character in "-._" else "_" for character in name)
    return Path("results") / "".join(safe)


def _variants(options: RunOptions, chosen: Mapping[str, Any]) -> list[TableLine]:
    """The lines of the table: every press at every size of a stored number and at every budget.

    Raises:
        ValueError: no press, or one that cannot be made or run as asked.
    """
    # both need torch
    from longpress.pipeline.compress_while_reading import check_compress_while_reading
    from longpress.pipeline.variants import Variant

    entries = presses(options.presses_dir)
    choices = {"none": "none", **chosen} if options.baseline else chosen
    if not choices:
        raise ValueError(f"press=[] with baseline=false names no press; existing: {', '.join(entries)}")
    lines = []
    for label, choice in choices.items():
        press = make_press(choice, entries)
        is_baseline = options.baseline and label == "none" and press.traits.is_full_cache
        sizes = dict.fromkeys([None, *options.bits()] if is_baseline else options.bits())
        for bits in sizes:
            for budget in _budgets(options, press):
                variant = Variant(press, budget, cache_bits=bits)
                if options.compress_every is not None:
                    check_compress_while_reading(variant)
                lines.append(TableLine(label if bits is None else f"{label}@{bits}bit", variant))
    return lines


def _budgets(options: RunOptions, press: BasePress) -> list[Budget]:
    """The budgets at which a press runs: those asked for; once, where it keeps everything or sets its own."""
    if press.traits.is_full_cache:
        return [Budget(ratio=0.0)]
    return [Budget.fixed()] if press.traits.has_fixed_budget else options.budgets()
