"""Every press of the catalogue with its defaults, and with made-up weights where it needs learned ones."""

from dataclasses import fields, replace

from kvcache.budget import Budget
from longpress.catalogue import presses
from presses.base import BasePress
from tests.support.learned_weights import with_weights

NAMES = sorted(presses())
SMALL = {"compression_interval": 4, "target_size": 40, "sliding_window_size": 16, "decoding": True}
"""Values of common options at which something happens within a few tokens."""


def press_named(name: str) -> BasePress:
    """The press of that name."""
    return with_weights(presses()[name].load()())


def busy(press: BasePress) -> BasePress:
    """The press with options at which it acts within a few tokens, presses inside likewise."""
    changed = {
        f.name: SMALL[f.name]
        for f in fields(press)
        if f.name in SMALL and isinstance(getattr(press, f.name), int)
    }
    inside = {
        field.name: busy(getattr(press, field.name))
        for field in fields(press)
        if isinstance(getattr(press, field.name), BasePress)
    }
    return replace(press, **changed, **inside)


def busy_press_named(name: str) -> BasePress:
    """The press of that name, made to act within a few tokens of an answer."""
    return busy(press_named(name))


ACTIVE = [name for name in NAMES if busy_press_named(name).acts_while_decoding(Budget(ratio=0.5))]
"""Presses that do something while an answer is written."""


def has_no_ratio(press: BasePress) -> bool:
    """Whether the press keeps the whole context, whatever ratio is asked for: none, decoding, cam."""
    return press.traits.is_full_cache or (
        press.traits.has_fixed_budget and not press.traits.evicts_in_prefill
    )
