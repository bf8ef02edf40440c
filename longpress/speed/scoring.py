"""What scoring costs: `python -m longpress.speed.scoring` measures every press's share of a prefill on the embedded model, one thread.

A press's `observe` is timed alone on every layer of a context of the haystack, with nothing that another
press would have computed before it; the prefill is transformers' own, without any press. Presses that look at
something in common share it in a sweep, so the shares of a sweep's presses together are at most their sum.
Work at selection (per ratio) and extra passes (`probe`) are not in it: see the costs that every run writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.haystack import load
from kvcache.observation import LayerObservation
from kvcache.modules import cache_keyword
from kvcache.hooks.prefill import observing
from longpress.catalogue import presses
from longpress.models.loading import load_model
from longpress.pipeline.clock import now
from longpress.speed.limit import plain_prefill
from presses.base import BasePress

LIMIT = 0.03
"""Share of the prefill above which a scorer counts as dear."""


def layers_of(model: Any, ids: Tensor) -> list[LayerObservation]:
    """Every layer of one prefill of (1, T) ids."""
    seen: list[LayerObservation] = []
    with observing(model, lambda layer, _: seen.append(layer)):
        model.model(input_ids=ids, **{cache_keyword(model.model): DynamicCache(config=model.config)})
    return seen


def seconds(press: BasePress, layers: Sequence[LayerObservation], repeats: int) -> float:
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
    """One row per press: name, seconds to observe, share of a prefill; or why it does not observe on this model.

    Returns:
        `{"press", "seconds", "share"}`, or `{"press", "refused"}`, dearest first.
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
            taken = seconds(press, layers, repeats)
            rows.append({"press": name, "seconds": round(taken, 4), "share": round(taken / prefill, 4)})
    rows.sort(key=lambda row: -row.get("share", -1.0))
    return [{"press": "(prefill)", "seconds": round(prefill, 4), "share": 1.0}, *rows]


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m longpress.speed.scoring", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="length of the context")
    parser.add_argument("--repeats", type=int, default=3, help="of which the best counts")
    parser.add_argument("--out", type=Path, default=None, help="file to write")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model()
    ids = torch.tensor(
        [loaded.tokenizer(load("walden").text[: 8 * asked.tokens])["input_ids"][: asked.tokens]]
    )
    rows = shares(loaded.model, ids, asked.repeats)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            json.dumps({"tokens": ids.shape[1], "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    for row in rows:
        mark = f"  above {LIMIT:.0%}" if row.get("share", 0.0) > LIMIT and row["press"] in presses() else ""
        measured = (
            f"{row['seconds']:>8.3f} s {row['share']:>7.1%}{mark}" if "share" in row else row["refused"]
        )
        print(f"{row['press']:<28} {measured}")


if __name__ == "__main__":
    main()
