"""Fields of a row, or one sentence about what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def field(row: Mapping[str, Any], *names: str, where: str) -> Any:
    """The first of the fields `names` that a row has and that is not null.

    Raises:
        ValueError: it has none; names place and fields.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    wanted, known = " or ".join(map(repr, names)), ", ".join(map(str, row)) or "none"
    raise ValueError(f"{where}: no field {wanted}; its fields are {known}")


def text_field(row: Mapping[str, Any], *names: str, where: str) -> str:
    """The same, and it is text.

    Raises:
        ValueError: the row has none, or it is not text.
    """
    value = field(row, *names, where=where)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the field {names[0]!r} is a {type(value).__name__}, where text is expected"
        )
    return value


def text_list(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A field that is a list of texts.

    Raises:
        ValueError: the row has none, or it is something else.
    """
    value = field(row, name, where=where)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: the field {name!r} is not a list of texts")
    return value
