"""What scoring costs: every press's share of a prefill on the embedded model, on one thread.

A press's `observe` is timed alone on every layer of a context of the haystack, with nothing that another
press would have computed before it; the prefill is transformers' own, without any press. Presses that look at
something in common share it in a sweep, so the shares of a sweep's presses together are at most their sum.
Work at selection (per ratio) and extra passes (`probe`) are not in it: see the costs that every run writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.text.haystacks import load_haystack
from kvcache.hooks.prefill import observing
from kvcache.modules import cache_keyword
from kvcache.observation import LayerObservation
from longpress.catalogue import presses
from longpress.models.loading import load_model
from longpress.pipeline.clock import now
from longpress.speed.limit import plain_prefill
from presses.base import BasePress

LIMIT = 0.03
"""Share of the prefill above which a scorer counts as dear."""


def layers_of(model: Any, ids: Tensor) -> list[LayerObservation]:
    """Every layer of one prefill of (1, T) ids."""
    layers: list[LayerObservation] = []
    with observing(model, lambda layer, _: layers.append(layer)):
        model.model(input_ids=ids, **{cache_keyword(model.model): DynamicCache(config=model.config)})
    return layers


def observe_seconds(press: BasePress, layers: Sequence[LayerObservation], repeats: int) -> float:
    """Best of `repeats` times that `press` takes to observe all layers, each with an empty memo."""
    best = float("inf")
    for _ in range(repeats):
        fresh = [replace(layer, _memo={}) for layer in layers]
        started = now()
        for layer in fresh:
            press.observe(layer)
        best = min(best, now() - started)
    return best


def shares(model: nn.Module, ids: Tensor, repeats: int = 3) -> list[dict[str, Any]]:
    """What each press of the catalogue costs.

    Args:
        model: of transformers.
        ids: (1, T) of the context.
        repeats: of each measurement, of which the best counts.

    Returns:
        The prefill, then one row per press, dearest first: `{"press", "seconds", "share"}`, or
        `{"press", "refused"}` where it does not observe on this model.
    """
    with torch.no_grad():
        plain_prefill(model, ids[:, :256])
        prefill = min(plain_prefill(model, ids) for _ in range(repeats))
        layers = layers_of(model, ids)
        rows: list[dict[str, Any]] = []
        for name, entry in presses().items():
            try:
                press = entry.load()()
                press.observe(replace(layers[0], _memo={}))
            except ValueError as error:
                rows.append({"press": name, "refused": str(error)})
                continue
            taken = observe_seconds(press, layers, repeats)
            rows.append({"press": name, "seconds": round(taken, 4), "share": round(taken / prefill, 4)})
    rows.sort(key=lambda row: -row.get("share", -1.0))
    return [{"press": "(prefill)", "seconds": round(prefill, 4), "share": 1.0}, *rows]


def scoring_costs(tokens: int, repeats: int) -> dict[str, Any]:
    """The costs on the embedded model.

    Args:
        tokens: of the context.
        repeats: as in `shares`.

    Returns:
        `tokens` of the context, and `rows` of `shares`.
    """
    torch.set_num_threads(1)
    loaded = load_model()
    text = load_haystack("walden").text[: 8 * tokens]
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"][:tokens]])
    return {"tokens": ids.shape[1], "rows": shares(loaded.model, ids, repeats)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `shares`, as lines of text."""
    lines = []
    for row in rows:
        if "share" in row:
            dear = row["share"] > LIMIT and row["press"] in presses()
            mark = f"  above {LIMIT:.0%}" if dear else ""
            cost = f"{row['seconds']:>8.3f} s {row['share']:>7.1%}{mark}"
        else:
            cost = row["refused"]
        lines.append(f"{row['press']:<28} {cost}")
    return "\n".join(lines)
