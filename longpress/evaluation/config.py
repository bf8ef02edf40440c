"""From the command line to presses, a benchmark and a model: the dataclasses are the schema, YAML only states choices.

Importing this module needs no torch; building presses does.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from benchmarks.base import Benchmark
from longpress.analysis.records import LARGEST
from longpress.catalogue import Entry, benchmarks, find, presses

if TYPE_CHECKING:
    from longpress.pipeline.prefill import Variant
    from presses.base import BasePress

HELP = """longpress: read a context once, ask every press what it would keep, decode all the answers together.

  python evaluate.py press=snapkv compression_ratio=0.5
  python evaluate.py press=[snapkv,knorm,adakv] compression_ratio=[0.25,0.5,0.75] benchmark=ruler limit=10
  python evaluate.py -m press=snapkv,knorm model=smollm2,qwen3-8b    # several jobs; with hydra/launcher=slurm, ray or joblib elsewhere

== Presses (press=NAME or press=[NAME,…]; options of a chosen press: presses.NAME.OPTION=VALUE) ==

{presses}

== Benchmarks (benchmark=NAME; options: benchmark.OPTION=VALUE) ==

{benchmarks}

== Models (model=NAME; any other: model=hub model.path=ORGANISATION/NAME) ==

  {models}

== Configuration ==

{config}"""


KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "options",
    type(None): "null",
}
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "benchmark", "shard"), (dict,)),
    **dict.fromkeys(("baseline", "query_aware", "plots", "plan", "fidelity"), (bool,)),
    **dict.fromkeys(("limit", "prefill_chunk"), (int, type(None))),
    **dict.fromkeys(("seed", "kept_maps", "workers"), (int,)),
    "results": (str, int, type(None)),
    "presses_dir": (str, type(None)),
    "max_batch_gb": (float, int),
    "presses": (dict, type(None)),
    **dict.fromkeys(("prefill", "offload"), (str,)),
}
"""Types of the top level of a configuration."""
BUDGETS = ("compression_ratio", "budget_tokens", "threshold", "cache_bits")
"""Its other options, of one value or several, which are checked where they are used."""


@dataclass(frozen=True)
class Settings:
    """A checked configuration.

    Attributes:
        model: fields of `longpress.models.loading.ModelConfig`.
        benchmark: ready to give samples.
        variants: label and variant of each line of the table, the full cache first.
        query_aware: whether the question is seen while compressing.
        limit: samples per task, None for all.
        results: folder to fill.
        prefill_chunk: tokens per chunk of the prefill, None for one piece.
        prefill: "shared" or "chunked".
        max_batch_gb: bound on a decode batch, GiB.
        seed: of benchmark and presses that draw.
        kept_maps: samples per task for which is recorded what each token keeps.
        resolved: the whole configuration, as plain values.
        shard: index and count: this job takes every count-th context from index on.
        plan: print what would be done, and stop.
        plots: whether to draw plots at the end.
        workers: processes that share the contexts; 0 for one per GPU.
        fidelity: measure how far presses move the model, beside scores.
        offload: "auto", "always" or "never": whether caches lie in host memory.
    """

    model: dict[str, Any]
    benchmark: Benchmark
    variants: list[tuple[str, Variant]]
    query_aware: bool
    limit: int | None
    results: Path
    prefill_chunk: int | None
    prefill: str
    max_batch_gb: float
    seed: int
    kept_maps: int = 0
    resolved: dict[str, Any] = field(default_factory=dict)
    shard: tuple[int, int] = (0, 1)
    plan: bool = False
    plots: bool = False
    workers: int = 1
    fidelity: bool = False
    offload: str = "auto"


def register(arguments: Sequence[str] = ()) -> None:
    """Tell Hydra what exists: an option of the group `benchmark` per benchmark, of the group `press` per press.

    A chosen press has its options under `presses.<name>`; choosing several (`press=[a,b]`) gives several such
    nodes.

    Args:
        arguments: of the command line, searched for `presses_dir=`, whose presses are options too.

    Raises:
        ValueError: `presses_dir` is no folder, or repeats a name; or an argument names a target.
    """
    _refuse_targets(" ".join(arguments))
    store = ConfigStore.instance()
    for name, entry in benchmarks().items():
        store.store(group="benchmark", name=name, node=_schema(entry.load(), name), package="benchmark")
    for name, entry in _presses_with(arguments).items():
        store.store(group="press", name=name, node=_press_node(entry), package=f"presses.{name}")


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not have, which it would answer with all that it has.

    Raises:
        ValueError: such a flag, or one whose value is missing or none of its choices.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; options are given as name=value, and flags such as -m come before them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(list(arguments))


def help_text(arguments: Sequence[str]) -> str:
    """What `--help` prints, beside it the configuration that the other arguments give.

    Hydra's own help copies everything registered once per group of options, which takes longer than all the
    rest.

    Raises:
        ValueError: the arguments give no configuration.
    """

    def table(entries: Mapping[str, Entry]) -> str:
        width = max(map(len, entries), default=0)
        return "\n".join(f"  {name:<{width}}  {entry.summary}" for name, entry in entries.items())

    folder = Path(__file__).parents[2] / "conf"
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            config = compose(
                "config", overrides=[argument for argument in arguments if not argument.startswith("-")]
            )
    except HydraException as error:
        raise ValueError(str(error)) from error
    models = ", ".join(sorted(path.stem for path in (folder / "model").glob("*.yaml")))
    texts = {"presses": table(_presses_with(arguments)), "benchmarks": table(benchmarks()), "models": models}
    return HELP.format(**texts, config=OmegaConf.to_yaml(config))


def _presses_with(arguments: Sequence[str]) -> dict[str, Entry]:
    """All presses, with those of the folder that the arguments name."""
    folders = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("presses_dir=")]
    return presses(folders[-1] if folders and folders[-1] != "null" else None)


def settings(config: DictConfig) -> Settings:
    """Check everything that can be checked before a model loads.

    Raises:
        ValueError: one sentence: what was given, what is allowed, what to do.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    _check_types(plain)
    limit = plain["limit"]
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1 sample per task, or null for all")
    if plain["prefill_chunk"] is not None and plain["prefill_chunk"] < 1:
        raise ValueError(
            f"prefill_chunk={plain['prefill_chunk']} must be a positive number of tokens, or null to read in one piece"
        )
    if plain["kept_maps"] < 0:
        raise ValueError(
            f"kept_maps={plain['kept_maps']} must be a number of samples per task, or 0 for none"
        )
    if not 0 < plain["max_batch_gb"] < math.inf:
        raise ValueError(
            f"max_batch_gb={plain['max_batch_gb']} must be positive: it bounds the memory of a decode batch, in GiB"
        )
    if plain["workers"] < 0:
        raise ValueError(f"workers={plain['workers']} must be a number of processes, or 0 for one per GPU")
    if plain["workers"] != 1 and plain["model"].get("device_map") is not None:
        raise ValueError(
            f"workers={plain['workers']} with model.device_map: one model takes all devices; set workers=1"
        )
    index, count = plain["shard"]["index"], plain["shard"]["count"]
    if not (type(index) is type(count) is int and 0 <= index < count):
        raise ValueError(
            f"shard.index={index} with shard.count={count}: the index must be a whole number from 0 to below the count"
        )
    benchmark = _benchmark(plain["benchmark"])
    variants = _variants(plain)
    _check_prefill(plain["prefill"], plain["prefill_chunk"], plain["offload"], variants)
    name = f"{benchmark.name}-{plain['model']['name']}"
    safe = "".join(character if character.isalnum() or character in "-._" else "_" for character in name)
    folder = Path(str(plain["results"])) if plain["results"] else Path("results") / safe
    return Settings(
        plain["model"],
        benchmark,
        variants,
        plain["query_aware"],
        limit,
        folder,
        plain["prefill_chunk"],
        plain["prefill"],
        plain["max_batch_gb"],
        plain["seed"],
        plain["kept_maps"],
        plain,
        (index, count),
        plain["plan"],
        plain["plots"],
        plain["workers"],
        plain["fidelity"],
        plain["offload"],
    )


def _check_types(plain: Mapping[str, Any]) -> None:
    """Refuse options that do not exist or are missing, values of another type, and targets, which would run what a configuration names."""
    known, groups = (*TYPES, *BUDGETS), {"shard": ("count", "index"), "model": ("path", "name")}
    if unknown := sorted(map(str, plain.keys() - set(known))):
        near = get_close_matches(unknown[0], known, n=1)
        raise ValueError(
            f"there is no option {', '.join(unknown)}; {f'did you mean {near[0]}? ' if near else ''}existing: {', '.join(known)}"
        )
    if missing := [name for name in known if name not in plain and name != "presses"]:
        raise ValueError(f"{', '.join(missing)} cannot be deleted; leave the default, or give a value")
    for name, kinds in TYPES.items():
        if type(plain.get(name)) not in kinds:
            raise ValueError(
                f"{name}={plain.get(name)!r} must be {' or '.join(map(KINDS.__getitem__, kinds))}"
            )
    for name, needed in groups.items():
        if missing := [one for one in needed if one not in plain[name]]:
            raise ValueError(f"{name} lacks {', '.join(missing)}; leave the default, or give a value")
    if unknown := sorted(map(str, plain["shard"].keys() - set(groups["shard"]))):
        raise ValueError(f"shard has no option {', '.join(unknown)}; it has {', '.join(groups['shard'])}")
    if not -LARGEST < plain["seed"] < LARGEST:
        raise ValueError(f"seed={plain['seed']} is too large; it must lie within 64 bits")
    if not str(plain["model"].get("name")).isprintable():
        raise ValueError(
            f"model.name={plain['model']['name']!r} must be text that can be printed: it stands in tables"
        )
    _refuse_targets(str(plain))


def _refuse_targets(text: str) -> None:
    """Only what our own files name is made from a configuration; Hydra itself takes launchers and sweepers from its plugins alone."""
    if "_target_" in text:
        raise ValueError(
            "_target_ is not allowed: presses, benchmarks, models and launchers are chosen by name, and nothing else is made"
        )


def make_press(choice: Any, entries: Mapping[str, Entry]) -> BasePress:
    """A press from its name, or from a mapping `{name: …, field: value}`, presses inside likewise.

    Raises:
        ValueError: unknown name or field, or a value that the press refuses.
    """
    values = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"press={choice!r} is neither a name nor a mapping with a name; existing: {', '.join(entries)}"
        )
    entry = find(name, entries, "press")
    unknown = sorted(values.keys() - entry.options.keys())
    if unknown:
        raise ValueError(
            f"press {name} has no option {', '.join(unknown)}; it has {', '.join(entry.options) or 'none'}"
        )
    for key, option in entry.options.items():
        if option.is_press and key in values:
            values[key] = make_press(values[key], entries)
        elif isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    for key, value in values.items():
        option = entry.options[key]
        kinds = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}.get(
            option.type.removesuffix(" | None")
        )
        if (
            kinds
            and type(value) not in kinds
            and value != option.default
            and (value is not None or "None" not in option.type)
        ):
            raise ValueError(f"press {name}: {key}={value!r} must be {KINDS[kinds[0]]}")
        if any(
            isinstance(one, float) and not math.isfinite(one)
            for one in (value if isinstance(value, tuple) else (value,))
        ):
            raise ValueError(f"press {name}: {key}={value} must be finite")
    press = _made(entry, name, "press", values)
    from presses.base import BasePress

    if not isinstance(press, BasePress):
        raise ValueError(
            f"press {name}: {entry.class_name} in {entry.path} is no press; let it inherit BasePress or ScorerPress"
        )
    return press


def _made(entry: Entry, name: str, kind: str, values: Mapping[str, Any]) -> Any:
    """A press or benchmark with its options, whatever its own checks raise.

    Raises:
        ValueError: they refuse a value; names the press or benchmark.
    """
    made = entry.load()
    try:
        return made(**values)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{kind} {name}: {type(error).__name__}: {error}") from error


def _variants(plain: Mapping[str, Any]) -> list[tuple[str, Variant]]:
    given = {name: _listed(plain[name]) for name in ("compression_ratio", "budget_tokens", "threshold")}
    if plain["compression_ratio"] == [] or not any(given.values()):
        if plain["compression_ratio"] is not None:
            raise ValueError("compression_ratio=[] names no ratio; give at least one in [0, 1)")
        given["compression_ratio"] = [0.5]
    entries = presses(plain["presses_dir"])
    chosen: dict[str, Any] = plain.get("presses") or {}
    if plain["baseline"]:
        chosen = {"none": "none"} | chosen
    if not chosen:
        raise ValueError(f"press=[] with baseline=false names no press; existing: {', '.join(entries)}")
    from kvcache.selection import check_ratio
    from longpress.pipeline.prefill import Variant

    asked = [
        {"compression_ratio": ratio}
        for ratio in dict.fromkeys(map(check_ratio, given.pop("compression_ratio")))
    ]
    asked += [{name: value} for name, values in given.items() for value in dict.fromkeys(values)]
    labelled = [(label, make_press(choice, entries)) for label, choice in chosen.items()]
    sizes = dict.fromkeys([_whole(bits) for bits in _listed(plain["cache_bits"])] or [None])
    return [
        (label if bits is None else f"{label}@{bits}bit", Variant(press, **limit, cache_bits=bits))
        for label, press in labelled
        for bits in dict.fromkeys(
            [None, *sizes] if press.lossless and plain["baseline"] and label == "none" else sizes
        )
        for limit in _limits(press, asked)
    ]


def _check_prefill(
    mode: str, size: int | None, offload: str, variants: Sequence[tuple[str, Variant]]
) -> None:
    from longpress.pipeline.chunked import check_chunked, check_prefill
    from longpress.pipeline.memory import check_offload

    check_offload(offload)
    check_prefill(mode, size)
    for _, variant in variants if mode == "chunked" else ():
        check_chunked(variant)


def _limits(press: BasePress, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The budgets at which a press runs: those asked for; once, where it has no ratio or a field of its own sets its budget."""
    if press.lossless:
        return [{}]
    return [{"compression_ratio": press.compression_ratio}] if press.own_budget else asked


def _listed(given: Any) -> list[Any]:
    """The values of an option that takes one, several or none."""
    values = [] if given is None else given if isinstance(given, list) else [given]
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError(f"{given!r} must be one number or a list of numbers")
    return [_number(value) for value in values]


def _whole(value: Any) -> Any:
    """A whole number that was given as another kind of number, or the value itself."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    """A number that the command line gave as text, or the value itself."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _benchmark(node: Mapping[str, Any]) -> Benchmark:
    values = dict(node)
    name = values.pop("name", None)
    entry = find(str(name), benchmarks(), "benchmark")
    if unknown := sorted(map(str, values.keys() - entry.options.keys())):
        raise ValueError(
            f"benchmark {name} has no option {', '.join(unknown)}; it has {', '.join(entry.options)}"
        )
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    benchmark: Benchmark = _made(entry, name, "benchmark", lists)
    return benchmark


def _schema(cls: type[Any], name: str) -> Any:
    """An editable twin of a frozen dataclass, with the types that OmegaConf checks; a field called `seed` follows the run's seed."""
    hints = typing.get_type_hints(cls)
    specification: list[Any] = [("name", str, field(default=name))]
    for one in fields(cls):
        default = (
            one.default
            if one.default is not MISSING
            else (one.default_factory() if one.default_factory is not MISSING else None)
        )
        kind = hints[one.name]
        if typing.get_origin(kind) is tuple:
            kind = list[typing.get_args(kind)[0]]  # type: ignore[misc]
            default = list(default or ())
        if one.name == "seed":
            specification.append((one.name, int, field(default="${seed}")))  # type: ignore[call-overload]
        elif isinstance(default, list):
            specification.append((one.name, kind, field(default_factory=partial(list, default))))
        else:
            specification.append((one.name, kind, field(default=default)))
    return OmegaConf.structured(make_dataclass(f"{cls.__name__}Options", specification))


def _press_node(entry: Entry) -> Any:
    """A press's options with their defaults and types, read from its file without importing it."""
    known: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
    specification: list[Any] = [("name", str, field(default=entry.name))]
    for key, option in entry.options.items():
        default = option.default
        if option.is_press:
            specification.append((key, Any, field(default_factory=partial(_inside, default))))
        elif key == "seed":
            specification.append((key, int, field(default="${seed}")))  # type: ignore[call-overload]
        elif isinstance(default, tuple | list | dict):
            plain = list(default) if isinstance(default, tuple) else default
            specification.append((key, Any, field(default_factory=partial(copy, plain))))
        else:
            base, optional = option.type.removesuffix(" | None"), option.type.endswith("| None")
            kind = known.get(base, Any)
            specification.append(
                (key, kind | None if optional and kind is not Any else kind, field(default=default))
            )
    return OmegaConf.structured(make_dataclass(f"{entry.class_name}Options", specification))


def _inside(default: Any) -> Any:
    """The default of a field that is a press, as a choice: a name, or a mapping where fields differ from that press's own."""
    if not isinstance(default, Mapping):
        return None
    names = {entry.class_name: name for name, entry in presses().items()}
    rest = {
        key: _inside(value) if isinstance(value, Mapping) else value
        for key, value in default.items()
        if key != "class"
    }
    name = names[default["class"]]
    return {"name": name, **rest} if rest else name
