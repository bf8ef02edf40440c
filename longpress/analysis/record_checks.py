"""What the value of a record's field may be, so that tables can rely on it: its type, and its range."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that no name in a table has: control characters and lone surrogates."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of a surrogate in a line of JSON."""

Rule = Callable[[Any], bool]
"""Whether a value of the right type is in its range."""


class Check(NamedTuple):
    """What JSON may give a field.

    Attributes:
        types: those of its annotation, and whole numbers for fractions.
        rule: what else must hold; None where nothing must.
    """

    types: tuple[type, ...]
    rule: Rule | None

    def holds(self, value: Any) -> bool:
        """Whether the field may have this value."""
        return type(value) in self.types and (self.rule is None or self.rule(value))


def checks_of(record: type[Any], largest: int) -> dict[str, Check]:
    """The check of every field of a dataclass of records, in order.

    Args:
        record: the dataclass.
        largest: above every number that a record may hold.
    """
    hints, checks = get_type_hints(record), {}
    for field in fields(record):
        hint = hints[field.name]
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        types = tuple(get_origin(part) or part for part in parts)
        if float in types:
            types = (*types, int)
        checks[field.name] = Check(types, _rule(field.name, types, largest))
    return checks


def with_writable(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The row with "?" for lone surrogates in these fields, which no table could be written with.

    Raises:
        ValueError: a field is nested too deeply.
    """
    return {**row, **{name: _writable(row[name]) for name in names if name in row}}


def _rule(name: str, types: Sequence[type], largest: int) -> Rule | None:
    """The range of a field.

    Names can be written and read; shares lie in [0, 1]; other measured numbers are finite and not negative.
    """
    match name:
        case "key" | "model" | "benchmark" | "task" | "sample_id" | "press":
            return lambda value: bool(value) and not UNPRINTABLE.search(value)
        case "benchmark_version" | "context_id" | "metric" | "dtype" | "revision" | "prompt_hash":
            return lambda value: not UNPRINTABLE.search(value)
        case (
            "score"
            | "evidence_kept"
            | "kept_fraction_with_state"
            | "reference_agreement"
            | "answer_agreement"
        ):
            return lambda value: value is None or 0 <= value <= 1
        case "compression_ratio":
            return lambda value: value is None or 0 <= value < 1
        case "scores":
            return _are_shares
        case "kept_entries":
            return partial(_are_counts, largest)
        case "threshold" | "seed" | "sampling_seed":
            return lambda value: value is None or -largest < value < largest
        case "schema":
            return lambda value: bool(value >= 1)
        case _ if int in types:
            return lambda value: value is None or 0 <= value < largest
    return None


def _are_shares(scores: Mapping[str, Any]) -> bool:
    return all(type(score) in (int, float) and 0 <= score <= 1 for score in scores.values())


def _are_counts(largest: int, kept: Sequence[Any]) -> bool:
    """Whether these are entries per layer, or lists of them per KV head."""
    layers = [layer if isinstance(layer, list) else [layer] for layer in kept]
    return all(type(count) is int and 0 <= count < largest for heads in layers for count in heads)


def _writable(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("not a record: nested too deeply") from None
