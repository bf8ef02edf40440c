"""From a choice in a configuration to a press or benchmark, and the options that Hydra knows for each.

Both follow from what the catalogue read in the file, so that nothing is imported to list options. Importing
this module needs no torch; making a press does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import field, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from longpress.catalogue import Entry, Option, benchmarks, find
from longpress.evaluation.option_fields import KINDS

if TYPE_CHECKING:
    from benchmarks.base import Benchmark
    from presses.base import BasePress

TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
"""Annotations of options, as they are written, whose values Hydra checks; all others it takes as they are."""

RUN_SEED = "${seed}"
"""The default of every option called `seed`: the seed of the run."""


def schema(entry: Entry, presses: Mapping[str, Entry]) -> Any:
    """The options of a press or benchmark as a node for Hydra, with their defaults and types.

    Args:
        entry: the press or benchmark.
        presses: those that exist, by name: the default of an option that is a press is one of them.

    Raises:
        ValueError: a default cannot be told: its class cannot be loaded, or is none of the presses.
    """
    specification: list[Any] = [("name", str, field(default=entry.name))]
    defaults = entry.defaults()
    for name, option in entry.options.items():
        default = _plain_default(name, option, defaults[name], entry, presses)
        specification.append((name, _type(name, option), field(default_factory=partial(deepcopy, default))))
    return OmegaConf.structured(make_dataclass(f"{entry.class_name}Options", specification))


def _type(name: str, option: Option) -> Any:
    """The type of an option for OmegaConf; Any where the class itself checks the value."""
    if name == "seed":
        return int
    if option.type == "tuple[str, ...]":
        return list[str]
    kind = TYPES.get(option.type.removesuffix(" | None"), Any)
    is_optional = option.type.endswith("| None") and kind is not Any
    return kind | None if is_optional else kind


def _plain_default(
    name: str, option: Option, default: Any, entry: Entry, presses: Mapping[str, Entry]
) -> Any:
    """A default as YAML would state it: lists in place of tuples, a press by its name, the seed of the run.

    Raises:
        ValueError: the default of an option that is a press is not written as a press.
    """
    if name == "seed":
        return RUN_SEED
    if option.is_press and isinstance(default, Mapping):
        return _choice(default, entry, presses)
    if option.is_press and default is not None:
        raise ValueError(
            f"{entry.path}: write the default of {name} as a press with its fields, as in "
            f"{name}: ScorerPress = SnapKVPress(window_size=32)"
        )
    return list(default) if isinstance(default, tuple) else default


def _choice(default: Mapping[str, Any], entry: Entry, presses: Mapping[str, Entry]) -> Any:
    """The press that an option is by default, `{"class": …, field: value}`, as a choice.

    Returns:
        Its name; or, where fields differ from that press's own, `{"name": …, field: value}`.

    Raises:
        ValueError: the class is in no file of a press.
    """
    names = {press.class_name: name for name, press in presses.items()}
    if default["class"] not in names:
        raise ValueError(
            f"{entry.path}: {default['class']} is the default of an option of {entry.name}, but no press; "
            "give it a file of its own"
        )
    given = {
        name: _choice(value, entry, presses) if isinstance(value, Mapping) else value
        for name, value in default.items()
        if name != "class"
    }
    return {"name": names[default["class"]], **given} if given else names[default["class"]]


def make_press(choice: Any, entries: Mapping[str, Entry]) -> BasePress:
    """A press from its name, or from a mapping `{name: …, field: value}`, presses inside likewise.

    Args:
        choice: the name or mapping.
        entries: the presses that exist, by name.

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
    _refuse_unknown(values, entry, "press")
    for key, value in values.items():
        option = entry.options[key]
        if option.is_press:
            values[key] = make_press(value, entries)
            continue
        values[key] = tuple(value) if isinstance(value, list) else value
        _check_value(name, key, option, values[key])
    press = _made(entry, "press", values)
    from presses.base import BasePress  # which needs torch

    if not isinstance(press, BasePress):
        raise ValueError(
            f"press {name}: {entry.class_name} in {entry.path} is no press; let it inherit BasePress or "
            "ScorerPress"
        )
    return press


def make_benchmark(choice: Mapping[str, Any]) -> Benchmark:
    """A benchmark from a mapping `{name: …, field: value}`.

    Raises:
        ValueError: unknown name or field, or a value that the benchmark refuses.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in choice.items()}
    entry = find(str(values.pop("name", None)), benchmarks(), "benchmark")
    _refuse_unknown(values, entry, "benchmark")
    benchmark: Benchmark = _made(entry, "benchmark", values)
    return benchmark


def _refuse_unknown(values: Mapping[Any, Any], entry: Entry, kind: str) -> None:
    if unknown := sorted(map(str, values.keys() - entry.options.keys())):
        raise ValueError(
            f"{kind} {entry.name} has no option {', '.join(unknown)}; "
            f"it has {', '.join(entry.options) or 'none'}"
        )


def _check_value(press: str, name: str, option: Option, value: Any) -> None:
    """Refuse a value of another type than the option's, and numbers that are not finite.

    Raises:
        ValueError: says what is allowed.
    """
    kind = TYPES.get(option.type.removesuffix(" | None"))
    is_null = value is None and "None" in option.type
    if kind is not None and type(value) not in KINDS[kind].types and not is_null and value != option.default:
        raise ValueError(f"press {press}: {name}={value!r} must be {KINDS[kind].words}")
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"press {press}: {name}={value} must be finite")


def _made(entry: Entry, kind: str, values: Mapping[str, Any]) -> Any:
    """A press or benchmark with its options, whatever its own checks raise.

    Raises:
        ValueError: they refuse a value; names the press or benchmark.
    """
    made = entry.load()
    try:
        return made(**values)
    except ValueError:
        raise
    except Exception as error:  # a file of the user's own may raise anything
        raise ValueError(f"{kind} {entry.name}: {type(error).__name__}: {error}") from error
