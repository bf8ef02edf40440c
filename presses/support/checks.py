"""Checks of hyperparameters that many presses share; each refuses in a sentence."""

from __future__ import annotations


def check_least(least: int, unit: str = "", **given: float | None) -> None:
    """Refuse numbers below `least`; None passes.

    Args:
        least: smallest allowed number.
        unit: what is counted, such as "token".
        given: the numbers by the names of their fields.

    Raises:
        ValueError: names the field, the number and what is allowed.
    """
    for name, number in given.items():
        if number is not None and number < least:
            noun = unit if least == 1 or not unit else f"{unit}s"
            raise ValueError(f"{name}={number} must be at least {least} {noun}".rstrip())


def check_kernel(kernel_size: int) -> None:
    """Refuse a pooling that would move positions.

    Raises:
        ValueError: the width is even or not positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size={kernel_size} must be odd and positive, so that pooling keeps positions in place"
        )


def check_share(*, of: str, **given: float) -> None:
    """Refuse shares outside [0, 1].

    Args:
        of: what they are shares of, for the sentence.
        given: the shares by the names of their fields.

    Raises:
        ValueError: names the field, the share and what is allowed.
    """
    for name, share in given.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share} must lie in [0, 1]: it is a share of {of}")
