"""A press as a user of another library gives it: an object, or a name with options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longpress.catalogue import presses
from longpress.evaluation.choices import make_press
from presses.base import BasePress


def press_of(
    press: Any, compression_ratio: float | None = None, options: Mapping[str, Any] | None = None
) -> BasePress:
    """The press that is meant.

    Args:
        press: a press; a name of the catalogue; a mapping `{name: …, field: value}`; None for the full cache.
        compression_ratio: in the place of the press's own; needed where the press is given by its name and
            keeps everything without one.
        options: fields of a press given by its name. `{"press.window_size": 32}` is the field `window_size`
            of the press inside.

    Raises:
        ValueError: no such press or field, a value that the press refuses, or a ratio that is missing.
    """
    if press is None:
        press = "none"
    other_ratio = {} if compression_ratio is None else {"compression_ratio": compression_ratio}
    if isinstance(press, BasePress):
        if options:
            raise ValueError(
                f"options ({', '.join(options)}) are given beside a press that is made; give its name instead"
            )
        return replace(press, **other_ratio)  # type: ignore[type-var]
    if not isinstance(press, str | Mapping):
        raise ValueError(
            f"press={press!r} is no press of longpress; give one such as SnapKVPress(0.5), or its name "
            "(one of kvpress runs as FromKVPress(press))"
        )

    # From the catalogue, at the ratio that is given.
    choice = {"name": press} if isinstance(press, str) else dict(press)
    for path, value in (options or {}).items():
        _set(choice, path.split("."), value)
    made = make_press(choice, presses())
    if other_ratio:
        return replace(made, **other_ratio)  # type: ignore[type-var]
    if made.budget.keeps_everything and not made.traits.is_full_cache:
        raise ValueError(
            f"press={made.name} keeps everything unless it is told how much to remove; give "
            "compression_ratio too, e.g. compression_ratio=0.5"
        )
    return made


def _set(choice: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a field of a choice, or of a press inside it, which may be given by its name so far."""
    for name in path[:-1]:
        inside = choice.get(name)
        if not isinstance(inside, dict):
            inside = {} if inside is None else {"name": inside}
        choice[name] = inside
        choice = inside
    last = path[-1]
    if isinstance(choice.get(last), dict) and isinstance(value, str):
        value = {"name": value, **choice[last]}
    choice[last] = value
