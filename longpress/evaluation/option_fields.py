"""What follows from the fields of a class of options: defaults for Hydra, checks of names and types, help.

A class of options is a frozen dataclass all of whose fields have a default and, as metadata, a `help` and
perhaps a `heading`. A field may hold further options, in a class of its own: `shard` holds `shard.count` and
`shard.index`.

Importing this module needs no torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

RENAMED = {"prefill": "compress_every"}
"""Options of earlier versions, and those that took their place."""


class Kind(NamedTuple):
    """A type of values.

    Attributes:
        words: for messages.
        types: of Python that a plain value of this kind has.
    """

    words: str
    types: tuple[type, ...]


KINDS: Mapping[Any, Kind] = {
    bool: Kind("true or false", (bool,)),
    int: Kind("a whole number", (int,)),
    float: Kind("a number", (float, int)),
    str: Kind("text", (str,)),
    NoneType: Kind("null", (NoneType,)),
}
"""The annotations that a field may have, alone or joined by `|`, and the values that they allow."""

OPTIONS = "a group of options"
"""What the value of a field that holds further options must be, in the words of messages."""

Options = TypeVar("Options")


def defaults(options: type[Any]) -> dict[str, Any]:
    """Name -> default of every option, as plain values; where an option holds further ones, a mapping."""
    return asdict(options())


def checked(options: type[Options], values: Mapping[str, Any], prefix: str = "") -> Options:
    """The options with the values of a configuration.

    Args:
        options: their class.
        values: plain values, one for each option and no other.
        prefix: of their names in messages, such as "shard.".

    Raises:
        ValueError: an option does not exist, lacks a value, or has one of another type or out of its range.
    """
    kinds = _kinds(options)
    refuse_unknown(values, kinds, prefix)
    if missing := [prefix + name for name in kinds if name not in values]:
        raise ValueError(f"{', '.join(missing)} cannot be deleted; leave the default, or give a value")
    return options(**{name: _checked(prefix + name, kind, values[name]) for name, kind in kinds.items()})


def refuse_unknown(names: Iterable[Any], known: Iterable[str], prefix: str = "") -> None:
    """Refuse names of options that do not exist.

    Args:
        names: those given.
        known: those that exist.
        prefix: of both in the message, such as "shard.".

    Raises:
        ValueError: says which does not exist, the nearest that does, and all that do.
    """
    existing = list(known)
    unknown = sorted(map(str, set(names) - set(existing)))
    if not unknown:
        return
    renamed = RENAMED.get(unknown[0])
    near = [renamed] if renamed in existing else get_close_matches(unknown[0], existing, n=1)
    hint = f"did you mean {prefix}{near[0]}? " if near else ""
    raise ValueError(
        f"there is no option {', '.join(prefix + name for name in unknown)}; {hint}"
        f"existing: {', '.join(prefix + name for name in existing)}"
    )


def described(options: type[Any], width: int = 110) -> str:
    """The options under their headings, each with its default and its help, wrapped to `width` columns.

    Those that a class declares stand before those that it inherits. Where a field names no heading, it is the
    first line of the docstring of the class that declares it.
    """
    sections: dict[str, list[_Line]] = {}
    for heading, line in _lines(options):
        sections.setdefault(heading, []).append(line)
    column = max(len(line.option) for lines in sections.values() for line in lines)
    texts = []
    for heading, lines in sections.items():
        wrapped = [
            textwrap.fill(
                line.help,
                width,
                initial_indent=f"  {line.option:<{column}}  ",
                subsequent_indent=" " * (column + 4),
            )
            for line in lines
        ]
        texts.append("\n".join([f"{heading}:", *wrapped]))
    return "\n\n".join(texts)


class _Line(NamedTuple):
    """An option in the help: with its default, as a command gives it, and what it does."""

    option: str
    help: str


def _lines(options: type[Any]) -> Iterator[tuple[str, _Line]]:
    """Heading and line of every option, class by class, the base classes last."""
    of_class = {option.name: option for option in fields(options)}
    for owner in options.__mro__:
        if not is_dataclass(owner):
            continue
        inherited = {option.name for base in owner.__bases__ if is_dataclass(base) for option in fields(base)}
        for name in [option.name for option in fields(owner) if option.name not in inherited]:
            option = of_class[name]
            heading = option.metadata.get("heading") or str(owner.__doc__).split("\n", 1)[0].rstrip(".")
            inner = fields(option.default) if is_dataclass(option.default) else ()
            for one in inner:
                yield heading, _Line(f"{name}.{one.name}={_shown(one.default)}", one.metadata["help"])
            if not inner:
                yield heading, _Line(f"{name}={_shown(option.default)}", option.metadata["help"])


def _shown(default: Any) -> str:
    """A default as a command gives it."""
    if default is None:
        return "null"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _kinds(options: type[Any]) -> dict[str, Any]:
    """Name -> annotation of every option."""
    hints = get_type_hints(options)
    return {option.name: hints[option.name] for option in fields(options)}


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A plain value as its option holds it.

    Raises:
        ValueError: it is of another type.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if any(get_origin(one) is tuple for one in kinds):
        return _one_or_several(name, value, "text" if str in kinds else "number")
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return checked(kind, value, f"{name}.")
    if not any(one in KINDS and type(value) in KINDS[one].types for one in kinds):
        words = [KINDS[one].words if one in KINDS else OPTIONS for one in kinds]
        raise ValueError(f"{name}={value!r} must be {' or '.join(words)}")
    return value


def _one_or_several(name: str, value: Any, word: str) -> Any:
    """One value, or a tuple of the values of a list; what each may be is checked where it is declared.

    Raises:
        ValueError: it is a mapping, or a list that holds more than single values.
    """
    several = isinstance(value, list | tuple)
    if any(isinstance(one, list | tuple | dict) for one in (value if several else [value])):
        raise ValueError(f"{name}={value!r} must be one {word} or a list of {word}s")
    return tuple(value) if several else value
